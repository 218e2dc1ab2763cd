// Package workdir reads and writes a job's working directory for
// implementations of storage.Store.
//
// What lies in the directory belongs to the runner, which may be hostile and
// still at work. Names are therefore opened one element at a time, each relative
// to the one before and never through a symbolic link, so that no swap of a
// directory for a link can lead outside. Nothing that could block is opened:
// files are opened with O_NONBLOCK, and only regular ones are read or written.
//
// Names are relative to the directory, with slashes, and without empty, "." and
// ".." elements; the callers check that.
//
// Errors of the directory wrap storage.ErrWorkDir; names that the file system
// cannot take are storage.ErrBadName.
package workdir

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

// Files and directories of a job are readable for the runner, which may be
// another user, whatever the umask.
const (
	fileMode = 0o644
	dirMode  = 0o755
)

// Dir is an open working directory. Its methods may be called from any number of
// goroutines.
type Dir struct {
	root  *os.Root
	file  *os.File // the same directory, for its descriptor
	owner *owner   // nil: what is made belongs to this process's user
}

type owner struct{ uid, gid int }

// Open opens the working directory behind root. What Mkdir and Create make there
// belongs to the user that how names. The caller closes the Dir, and root.
func Open(root *os.Root, how storage.Options) (*Dir, error) {
	file, err := root.Open(".")
	if err != nil {
		return nil, wrap("open", ".", err)
	}
	d := &Dir{root: root, file: file}
	if how.Owned {
		d.owner = &owner{how.UID, how.GID}
	}
	var stat unix.Stat_t
	err = unix.Fstat(d.fd(), &stat)
	if err == nil && stat.Nlink == 0 { // it was removed while root was open
		err = unix.ENOENT
	}
	if err != nil {
		_ = file.Close()
		return nil, wrap("open", ".", err)
	}
	return d, nil
}

// Close closes the Dir; the os.Root that it was made of stays open.
func (d *Dir) Close() error { return d.file.Close() }

func (d *Dir) fd() int { return int(d.file.Fd()) }

// CanHold refuses, with class errdefs.ErrInvalidArgument, what the directory's
// disk could not hold were it empty.
func (d *Dir) CanHold(size int64) error {
	var disk unix.Statfs_t
	if err := unix.Fstatfs(d.fd(), &disk); err != nil {
		return wrap("ask for the size of the disk of", ".", err)
	}
	if whole := int64(disk.Blocks) * disk.Bsize; whole > 0 && size > whole { // some file systems do not say
		return fmt.Errorf("%w: the inputs take %d bytes and its disk has %d in all: %w", storage.ErrWorkDir, size, whole, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Mkdir makes the directory called name and those above it, where they are
// missing. One that is there gets the owner and mode that a new one would have:
// a Mkdir that was cut short may have left it without.
func (d *Dir) Mkdir(name string) error {
	dir, err := d.openDir(name, true)
	if err != nil {
		return err
	}
	return dir.Close()
}

// openDir opens the directory called name, and makes what is missing with
// create. The name "." is the Dir itself.
func (d *Dir) openDir(name string, create bool) (*os.File, error) {
	root := d.fd()
	fd := root
	for element := range strings.SplitSeq(name, "/") {
		next, err := d.openElement(fd, element, create && element != ".")
		if fd != root {
			_ = unix.Close(fd)
		}
		if err != nil {
			return nil, wrap("open", name, err)
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (d *Dir) openElement(parent int, element string, create bool) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, element, flags, 0)
	if !create {
		return fd, err
	}
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(parent, element, dirMode); err != nil && !errors.Is(err, unix.EEXIST) { // another goroutine was faster
			return -1, err
		}
		fd, err = unix.Openat(parent, element, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	if err := d.settle(fd, dirMode); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// settle gives the open file or directory the owner and the mode that it is to
// have.
func (d *Dir) settle(fd int, mode uint32) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if !d.owned(&stat) {
		if err := unix.Fchown(fd, d.owner.uid, d.owner.gid); err != nil {
			return fmt.Errorf("give it to user %d and group %d: %w", d.owner.uid, d.owner.gid, err)
		}
	}
	if stat.Mode&0o7777 != mode {
		return unix.Fchmod(fd, mode)
	}
	return nil
}

// owned reports whether what stat describes has the owner it is to have.
func (d *Dir) owned(stat *unix.Stat_t) bool {
	return d.owner == nil || int(stat.Uid) == d.owner.uid && int(stat.Gid) == d.owner.gid
}

// in calls f with the directory that name lies in and the name's last element.
func (d *Dir) in(name string, create bool, f func(dir int, base string) error) error {
	parent, base := path.Split(name)
	if parent == "" {
		return f(d.fd(), base)
	}
	dir, err := d.openDir(strings.TrimSuffix(parent, "/"), create)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(int(dir.Fd()), base)
}

// Create opens the file called name for writing, with what an earlier Create
// left in it. Whatever else has the name is removed: writing to a hard link
// would change a file that may lie elsewhere.
func (d *Dir) Create(name string) (*os.File, error) {
	var file *os.File
	err := d.in(name, true, func(dir int, base string) error {
		fd, err := openPart(dir, base)
		if errors.Is(err, errOther) {
			if err := d.root.RemoveAll(name); err != nil {
				return wrap("remove", name, err)
			}
			fd, err = openPart(dir, base)
		}
		if err != nil {
			return wrap("create", name, err)
		}
		if err := d.settle(fd, fileMode); err != nil {
			_ = unix.Close(fd)
			return wrap("create", name, err)
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	return file, err
}

// errOther says that a name is taken by something that must not be written to.
var errOther = errors.New("something else has the name")

// openPart opens a regular file that has this name alone, and makes it where
// there is none.
func openPart(dir int, base string) (int, error) {
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, base, flags|unix.O_CREAT|unix.O_EXCL, fileMode)
	if !errors.Is(err, unix.EEXIST) {
		return fd, err
	}
	fd, err = unix.Openat(dir, base, flags, 0)
	if replaced(err) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT) {
		return -1, errOther
	}
	if err != nil {
		return -1, err
	}
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && (!regular(&stat) || stat.Nlink != 1) {
		err = errOther
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Rename gives the file from its place as to, with the modification time mtime.
func (d *Dir) Rename(from, to string, mtime time.Time) error {
	return d.in(from, false, func(fromDir int, fromBase string) error {
		times := []unix.Timespec{unix.NsecToTimespec(mtime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
		if err := unix.UtimesNanoAt(fromDir, fromBase, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return wrap("set the time of", from, err)
		}
		return d.in(to, true, func(toDir int, toBase string) error {
			return wrap("create", to, unix.Renameat(fromDir, fromBase, toDir, toBase))
		})
	})
}

// Holds reports whether a regular file of this name, size and modification time
// is there, with the owner that Create would give it.
func (d *Dir) Holds(name string, size int64, mtime time.Time) (bool, error) {
	var stat unix.Stat_t
	err := d.in(name, false, func(dir int, base string) error {
		return wrap("stat", name, unix.Fstatat(dir, base, &stat, unix.AT_SYMLINK_NOFOLLOW))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && regular(&stat) && stat.Size == size && stat.Mtim.Nano() == mtime.UnixNano() && d.owned(&stat), err
}

// RemoveAll removes name with all below it; nil when it is not there.
func (d *Dir) RemoveAll(name string) error {
	return wrap("remove", name, d.root.RemoveAll(name))
}

// Sweep removes what lies in the Dir itself and has a name that begins with
// prefix.
func (d *Dir) Sweep(prefix string) error {
	return d.each(".", func(base string, _ *unix.Stat_t) error {
		if !strings.HasPrefix(base, prefix) {
			return nil
		}
		return d.RemoveAll(base)
	})
}

// Prune removes what lies below the directory called name and keep does not
// want. keep is asked for a directory before what lies in it.
func (d *Dir) Prune(name string, keep func(name string, dir bool) bool) error {
	for pending := []string{name}; len(pending) > 0; {
		folder := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		err := d.each(folder, func(base string, stat *unix.Stat_t) error {
			child := folder + "/" + base
			switch dir := stat.Mode&unix.S_IFMT == unix.S_IFDIR; {
			case !dir && !regular(stat), !keep(child, dir):
				return d.RemoveAll(child)
			case dir:
				pending = append(pending, child)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls visit for everything in the directory called folder.
func (d *Dir) each(folder string, visit func(base string, stat *unix.Stat_t) error) error {
	dir, err := d.openDir(folder, false)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, base := range names {
			var stat unix.Stat_t
			switch err := unix.Fstatat(int(dir.Fd()), base, &stat, unix.AT_SYMLINK_NOFOLLOW); {
			case errors.Is(err, unix.ENOENT): // gone since the directory was read
				continue
			case err != nil:
				return wrap("stat", folder+"/"+base, err)
			}
			if err := visit(base, &stat); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // its end, or it was removed meanwhile
			return nil
		}
		if err != nil {
			return wrap("read", folder, err)
		}
	}
}

func regular(stat *unix.Stat_t) bool { return stat.Mode&unix.S_IFMT == unix.S_IFREG }

// wrap says what could not be done with which file of the directory, and gives
// the error its class. The directory's own path does not show: clients see the
// text.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if located := new(fs.PathError); errors.As(err, &located) {
		err = located.Err
	}
	if name == "." {
		return Error(fmt.Errorf("%s it: %w", op, err))
	}
	if badName(err) {
		return fmt.Errorf("%q cannot be a file here (%w): %w", name, err, storage.ErrBadName)
	}
	return Error(fmt.Errorf("%s %q: %w", op, name, err))
}

func badName(err error) bool {
	return errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EILSEQ)
}

// Error marks an error of the directory's file system and gives it its class.
func Error(err error) error {
	var class error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMLINK):
		class = errdefs.ErrResourceExhausted
	case errors.Is(err, unix.EFBIG):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		class = errdefs.ErrPermissionDenied
	default:
		class = errdefs.ErrUnavailable
	}
	return fmt.Errorf("%w: %w: %w", storage.ErrWorkDir, err, class)
}
