package workdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/storage"
)

// linkBudget bounds the elements of names that are looked up to follow symbolic
// links, and the entries found behind them, in one walk. Links to directories
// with links in them multiply what is stored. A link to a file beside it takes
// three.
const linkBudget = 1 << 17

// maxHops is how many links one name may lead through, as in the kernel.
const maxHops = 40

// Warnings are what a walk left out, for clients to read. The zero value is
// ready.
type Warnings struct {
	mu    sync.Mutex
	texts []string
	more  int
}

// add notes that name was left out, and why.
func (w *Warnings) add(name, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.texts) == storage.MaxWarnings {
		w.more++
		return
	}
	const most = 200
	if len(name) > most {
		name = name[:most/2] + "…" + name[len(name)-most/2:]
	}
	w.texts = append(w.texts, fmt.Sprintf("%q is not stored: %s", name, why))
}

// Texts are the warnings, at most storage.MaxWarnings of them.
func (w *Warnings) Texts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more == 0 {
		return slices.Clone(w.texts)
	}
	last := len(w.texts) - 1
	return append(slices.Clone(w.texts[:last]), fmt.Sprintf("and %d more files are not stored", w.more+1))
}

// Output is a file to be stored.
type Output struct {
	Name string // to store it as
	real string // where it lies
	dir  *Dir
	w    *Warnings
}

// folder is a directory under way in a walk.
type folder struct {
	name   string // to store what lies in it below
	real   string // where it lies
	parent *folder
	linked bool // name leads through a link
}

// entered reports whether f or one of those above it is the directory at real.
func (f *folder) entered(real string) bool {
	for ; f != nil; f = f.parent {
		if f.real == real {
			return true
		}
	}
	return false
}

// Outputs calls visit for every file below the directory called top that is to
// be stored: regular files, and what symbolic links lead to below top. The rest
// goes into w. enter is asked before a directory is read, with the name that its
// files are stored below. A top that is not there holds nothing; one that is no
// directory is storage.ErrBadName.
func (d *Dir) Outputs(top string, w *Warnings, enter func(name string) error, visit func(Output) error) error {
	budget := linkBudget
	for pending := []*folder{{name: top, real: top}}; len(pending) > 0; {
		at := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		if at.linked {
			if budget -= strings.Count(at.real, "/") + 1; budget < 0 {
				w.add(at.name, string(tooMany))
				continue
			}
		}
		push := func(name, real string, linked bool) error {
			if linked && at.entered(real) {
				w.add(name, "the symbolic link leads back to a directory that it lies in")
				return nil
			}
			if err := enter(name); err != nil {
				return err
			}
			pending = append(pending, &folder{name: name, real: real, parent: at, linked: linked})
			return nil
		}
		err := d.each(at.real, func(base string, stat *unix.Stat_t) error {
			name, real := at.name+"/"+base, at.real+"/"+base
			if at.linked {
				if budget--; budget < 0 {
					w.add(name, string(tooMany))
					return nil
				}
			}
			switch kind := stat.Mode & unix.S_IFMT; kind {
			case unix.S_IFDIR:
				return push(name, real, at.linked)
			case unix.S_IFREG:
				return visit(Output{name, real, d, w})
			case unix.S_IFLNK:
				target, kind, err := d.follow(top, real, &budget)
				var reason refusal
				switch {
				case errors.As(err, &reason):
					w.add(name, string(reason))
					return nil
				case err != nil:
					return unreadable(name, err)
				case kind == unix.S_IFDIR:
					return push(name, target, true)
				}
				return visit(Output{name, target, d, w})
			default:
				w.add(name, "it is "+kindName(kind))
				return nil
			}
		})
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist): // top is not there, or it went away since the one above it was read
		case at.real == top && replaced(err):
			return fmt.Errorf("%q is not a directory: %w", top, storage.ErrBadName)
		case replaced(err):
			w.add(at.name, "the directory was replaced while it was read")
		default:
			return unreadable(at.name, err)
		}
	}
	return nil
}

// Open opens the file for reading and answers its size. A nil file means that it
// went away, or was replaced by something that is not stored, since its
// directory was read. One larger than storage.MaxFile is an error of class
// errdefs.ErrInvalidArgument.
func (o Output) Open() (*os.File, int64, error) {
	var file *os.File
	var size int64
	err := o.dir.in(o.real, false, func(dir int, base string) error {
		// O_NONBLOCK: a pipe that was swapped in does not hang.
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return wrap("open", o.Name, err)
		}
		var stat unix.Stat_t
		err = unix.Fstat(fd, &stat)
		if err == nil && !regular(&stat) {
			err = unix.ELOOP
		}
		if err != nil {
			_ = unix.Close(fd)
			return wrap("open", o.Name, err)
		}
		file, size = os.NewFile(uintptr(fd), o.Name), stat.Size
		return nil
	})
	switch {
	case err == nil && size > storage.MaxFile:
		file.Close()
		return nil, 0, fmt.Errorf("%q has %s, and storage takes files of up to %s: %w", o.Name, tib(size), tib(storage.MaxFile), errdefs.ErrInvalidArgument)
	case err == nil:
		return file, size, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, nil
	case replaced(err):
		o.w.add(o.Name, "the file was replaced while it was read")
		return nil, 0, nil
	}
	return nil, 0, unreadable(o.Name, err)
}

func tib(n int64) string { return fmt.Sprintf("%.1f TiB", float64(n)/(1<<40)) }

// replaced reports whether err says that a name leads through a link or something
// else that is not a directory.
func replaced(err error) bool {
	return errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// unreadable is err for what the runner made. What the runner did to it is no
// fault of the disk.
func unreadable(name string, err error) error {
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%q cannot be read: the runner left it without read permission: %w", name, storage.ErrBadName)
	case errors.Is(err, unix.EAGAIN): // the kernel breaks the lease in time
		return fmt.Errorf("%q is still in use by the runner, which holds a lease on it: %w", name, errdefs.ErrUnavailable)
	}
	return err
}

// refusal says in words for clients why a link is not followed.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	leadsOut     refusal = "the symbolic link leads out of the outputs"
	isAbsolute   refusal = "the symbolic link is absolute; those that are relative are followed, within the outputs"
	leadsNowhere refusal = "the symbolic link leads to nothing"
	leadsRound   refusal = "the symbolic link leads through too many links"
	tooMany      refusal = "there are too many symbolic links"
)

// follow finds what the link at name leads to within top: the name of a regular
// file or a directory, with no link in it, and which of the two it is. It is
// checked again when it is opened. A link that is not followed is a refusal.
func (d *Dir) follow(top, name string, budget *int) (string, uint32, error) {
	parent, base := path.Split(strings.TrimPrefix(name, top+"/"))
	done := strings.FieldsFunc(parent, func(r rune) bool { return r == '/' })
	todo := []string{base} // the last element comes first
	at := func() string { return strings.Join(append([]string{top}, done...), "/") }
	dir, err := d.openDir(at(), false)
	if err != nil {
		return "", 0, gone(err)
	}
	defer func() { dir.Close() }()
	*budget -= len(done) + 1
	for hops := 0; len(todo) > 0; {
		if *budget--; *budget < 0 {
			return "", 0, tooMany
		}
		element := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if element == ".." {
			if len(done) == 0 {
				return "", 0, leadsOut
			}
			done = done[:len(done)-1]
			*budget -= len(done) + 1
			above, err := d.openDir(at(), false)
			if err != nil {
				return "", 0, gone(err)
			}
			dir.Close()
			dir = above
			continue
		}
		var stat unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), element, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", 0, gone(wrap("stat", name, err))
		}
		switch kind := stat.Mode & unix.S_IFMT; {
		case kind == unix.S_IFDIR:
			fd, err := d.openElement(int(dir.Fd()), element, false)
			if err != nil {
				return "", 0, gone(wrap("open", name, err))
			}
			dir.Close()
			dir = os.NewFile(uintptr(fd), element)
			done = append(done, element)
		case kind == unix.S_IFLNK:
			if hops++; hops > maxHops {
				return "", 0, leadsRound
			}
			target, err := readlink(int(dir.Fd()), element)
			if err != nil {
				return "", 0, gone(wrap("read the link", name, err))
			}
			if strings.HasPrefix(target, "/") {
				return "", 0, isAbsolute
			}
			for _, element := range slices.Backward(strings.Split(target, "/")) {
				if element != "" && element != "." {
					todo = append(todo, element)
				}
			}
		case len(todo) > 0: // a file is no directory
			return "", 0, leadsNowhere
		case kind == unix.S_IFREG:
			return at() + "/" + element, kind, nil
		default:
			return "", 0, refusal("the symbolic link leads to " + kindName(kind))
		}
	}
	return at(), unix.S_IFDIR, nil
}

// gone turns errors that tell of a name without a file into a refusal.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, storage.ErrBadName) || replaced(err) || errors.Is(err, unix.EINVAL) {
		return leadsNowhere
	}
	return err
}

func readlink(dir int, base string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buffer)
	if err != nil {
		return "", err
	}
	return string(buffer[:n]), nil
}

func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	}
	return "not a regular file"
}
