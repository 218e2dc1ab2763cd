package durable

import "golang.org/x/sys/unix"

// topDir is FS_TOPDIR_FL of linux/fs.h, the attribute T of chattr(1).
const topDir = 0x00020000

// Spread asks the file system to put directories that are made in dir from now on
// into parts of the disk of their own. ext4 puts them beside dir otherwise, and
// looks, for each file that it makes, at all inodes of that part that were freed
// in the last minutes and that it does not use again yet: where one directory has
// files come and go, making files in its neighbours takes a multiple of the time.
// A file system that has no such wish is left as it is.
func Spread(dir string) {
	f, err := Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}
