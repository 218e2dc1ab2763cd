package s3

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/storage"
)

// Files and folders of a job are for the runner too, which may be another user.
const (
	fileMode = 0o644
	dirMode  = 0o755
)

// tree is a job's working directory. What lies in it belongs to the runner,
// which may be hostile and still at work: names are therefore opened one
// element at a time, each relative to the one before and never through a
// symbolic link, so that no swap of a folder for a link can lead outside.
// Names are relative, with slashes, and checked beforehand by checkName.
type tree struct{ root *os.File }

// canHold refuses what the tree's disk could not hold were it empty: to wait for
// room would be to wait for ever.
func (t *tree) canHold(size int64) error {
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(t.root.Fd()), &disk); err != nil {
		return fmt.Errorf("ask for the size of the disk: %w", err)
	}
	if whole := int64(disk.Blocks) * disk.Bsize; whole > 0 && size > whole { // some file systems do not say
		return fmt.Errorf("the inputs take %d bytes and the disk for working directories has %d in all: %w", size, whole, errdefs.ErrInvalidArgument)
	}
	return nil
}

// openTree opens the working directory at path, which is trusted but for its
// last element.
func openTree(path string) (*tree, error) {
	// The runner may have put something else in the directory's place.
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("the job's working directory is a link or no folder at all: %w", storage.ErrBadName)
	}
	if err != nil {
		var reason *fs.PathError
		if errors.As(err, &reason) { // clients see this, and need not know where it lies
			err = reason.Err
		}
		return nil, localError(fmt.Errorf("open the job's working directory: %w", err))
	}
	return &tree{root}, nil
}

func (t *tree) Close() error { return t.root.Close() }

// openDir opens the folder called name, making what is missing where create
// says so. The name "." is the tree itself.
func (t *tree) openDir(name string, create bool) (*os.File, error) {
	root := int(t.root.Fd())
	fd := root
	for element := range strings.SplitSeq(name, "/") {
		next, err := openElement(fd, element, create)
		if fd != root {
			_ = unix.Close(fd)
		}
		if err != nil {
			return nil, wrapLocal("open", name, err)
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openElement(parent int, element string, create bool) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, element, flags, 0)
	if !create || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	switch err := unix.Mkdirat(parent, element, dirMode); {
	case err == nil: // below
	case errors.Is(err, unix.EEXIST): // another goroutine was faster
		return unix.Openat(parent, element, flags, 0)
	default:
		return -1, err
	}
	fd, err = unix.Openat(parent, element, flags, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, dirMode); err != nil { // whatever the umask
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// in calls f with the folder that name lies in and the name's last element.
func (t *tree) in(name string, create bool, f func(dir int, base string) error) error {
	dir, base := path.Split(name)
	if dir == "" {
		return f(int(t.root.Fd()), base)
	}
	folder, err := t.openDir(strings.TrimSuffix(dir, "/"), create)
	if err != nil {
		return err
	}
	defer folder.Close()
	return f(int(folder.Fd()), base)
}

// mkdir makes the folder called name and those above it.
func (t *tree) mkdir(name string) error {
	dir, err := t.openDir(name, true)
	if err != nil {
		return err
	}
	return dir.Close()
}

// create opens the file called name for writing, with what is in it already.
func (t *tree) create(name string) (*os.File, error) {
	var file *os.File
	err := t.in(name, true, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, fileMode)
		if err != nil {
			return wrapLocal("create", name, err)
		}
		file = os.NewFile(uintptr(fd), name)
		if err := file.Chmod(fileMode); err != nil {
			file.Close()
			return localError(err)
		}
		return nil
	})
	return file, err
}

// open opens the regular file called name for reading and answers its size.
func (t *tree) open(name string) (*os.File, int64, error) {
	var file *os.File
	var size int64
	err := t.in(name, false, func(dir int, base string) error {
		// O_NONBLOCK: a pipe swapped in since the folder was read does not hang.
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return wrapLocal("open", name, err)
		}
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			_ = unix.Close(fd)
			return wrapLocal("stat", name, err)
		}
		if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFREG {
			_ = unix.Close(fd)
			return notRegular(name, kind)
		}
		file, size = os.NewFile(uintptr(fd), name), stat.Size
		return nil
	})
	return file, size, err
}

// stat describes name itself, not what it may point to.
func (t *tree) stat(name string) (unix.Stat_t, error) {
	var stat unix.Stat_t
	err := t.in(name, false, func(dir int, base string) error {
		return wrapLocal("stat", name, unix.Fstatat(dir, base, &stat, unix.AT_SYMLINK_NOFOLLOW))
	})
	return stat, err
}

// rename gives the file from its place as to, with the modification time mtime.
func (t *tree) rename(from, to string, mtime time.Time) error {
	return t.in(from, false, func(fromDir int, fromBase string) error {
		times := []unix.Timespec{unix.NsecToTimespec(mtime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
		if err := unix.UtimesNanoAt(fromDir, fromBase, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return wrapLocal("set the time of", from, err)
		}
		return t.in(to, true, func(toDir int, toBase string) error {
			return wrapLocal("create", to, unix.Renameat(fromDir, fromBase, toDir, toBase))
		})
	})
}

// removeAll removes name with all below it; nil when it is not there.
func (t *tree) removeAll(name string) error {
	root, err := os.OpenRoot(t.root.Name())
	if err != nil {
		return localError(err)
	}
	defer root.Close()
	return localError(root.RemoveAll(name))
}

// sweep removes the files of the tree itself whose names begin with prefix.
func (t *tree) sweep(prefix string) error {
	dir, err := t.openDir(".", false)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return localError(err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return wrapLocal("remove", name, err)
		}
	}
	return nil
}

// walk calls visit for everything below the folder called name, folders before
// what lies in them; visit answers whether to go into a folder. It holds one
// folder open at a time, however deep they nest.
func (t *tree) walk(name string, visit func(name string, stat *unix.Stat_t) (bool, error)) error {
	for pending := []string{name}; len(pending) > 0; {
		folder := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		err := t.each(folder, func(child string, stat *unix.Stat_t) error {
			enter, err := visit(child, stat)
			if err == nil && enter && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
				pending = append(pending, child)
			}
			return err
		})
		if folder != name && errors.Is(err, fs.ErrNotExist) {
			continue // it went away since the one above it was read
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) each(folder string, visit func(child string, stat *unix.Stat_t) error) error {
	dir, err := t.openDir(folder, false)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, base := range names {
			var stat unix.Stat_t
			switch err := unix.Fstatat(int(dir.Fd()), base, &stat, unix.AT_SYMLINK_NOFOLLOW); {
			case errors.Is(err, unix.ENOENT): // gone since the folder was read
				continue
			case err != nil:
				return wrapLocal("stat", folder+"/"+base, err)
			}
			if err := visit(folder+"/"+base, &stat); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return localError(err)
		}
	}
}

func notRegular(name string, kind uint32) error {
	what := map[uint32]string{
		unix.S_IFLNK: "a symbolic link", unix.S_IFIFO: "a named pipe", unix.S_IFSOCK: "a socket",
		unix.S_IFCHR: "a device", unix.S_IFBLK: "a device", unix.S_IFDIR: "a folder",
	}[kind]
	return fmt.Errorf("%q is %s, not a regular file: %w", name, what, storage.ErrBadName)
}

// wrapLocal says what could not be done with which local file. A symbolic link
// or a file in the place of a folder is a bad name; the rest is localError's.
func wrapLocal(op, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%q goes through a symbolic link or something else that is not a folder: %w", name, storage.ErrBadName)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("%q cannot be a file here (%w): %w", name, err, storage.ErrBadName)
	}
	return localError(&fs.PathError{Op: op, Path: name, Err: err})
}
