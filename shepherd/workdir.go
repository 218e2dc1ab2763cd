package shepherd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// Where working directories lie below the data root:
//
//	.staging/attempt-17/JOB_ID/{inputs,outputs}   while the daemon fills it
//	SHEEP/attempt-17/JOB_ID/{inputs,outputs}      from then on, until it is removed
//
// A runner can write anywhere below its sheep's directory, and a container sees
// nothing else. So a working directory is filled where no runner reaches, and
// renamed in whole. After that it is reached only through an open handle, which
// follows no link out of it.
const (
	stagingDir    = ".staging"
	attemptPrefix = "attempt-"
	dirMode       = 0o755
	fileMode      = 0o644
)

// workdirs makes the working directories of one sheep's attempts.
type workdirs struct {
	dataRoot string // absolute
	sheep    string
}

// workdir is the working directory of one attempt. It is not safe for use by
// several goroutines at once.
type workdir struct {
	of      workdirs
	attempt string // the name of the attempt's directory
	id      job.ID
	job     *os.Root // the job's directory
	shown   bool     // it lies in the sheep's directory
	owner   owner    // whose it is
	legacy  bool     // it lies in the sheep's directory itself, as before attempts had their own
}

// owner is the user that files belong to. The zero owner is this process's.
type owner struct {
	set      bool
	uid, gid int
}

func attemptDir(t ledger.Token) string { return attemptPrefix + strconv.FormatInt(int64(t), 10) }

// isAttemptDir reports whether a name is one that attemptDir gives out: the only
// names that are ever removed without being known.
func isAttemptDir(name string) bool {
	digits, ok := strings.CutPrefix(name, attemptPrefix)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// ioDataRoot is what the runner is told as its io_data_root.
func (d *workdir) ioDataRoot() string {
	if d.legacy {
		return filepath.Join(d.of.dataRoot, d.of.sheep)
	}
	return filepath.Join(d.of.dataRoot, d.of.sheep, d.attempt)
}

// open opens the data root, making it where it is missing.
func (w workdirs) open() (*os.Root, error) {
	if err := os.MkdirAll(w.dataRoot, dirMode); err != nil {
		return nil, workDirError("make data_root", err)
	}
	root, err := os.OpenRoot(w.dataRoot)
	if err != nil {
		return nil, workDirError("open data_root", err)
	}
	return root, nil
}

// subdir opens a directory below root, making it where it is missing.
func subdir(root *os.Root, name string, mode os.FileMode) (*os.Root, error) {
	err := root.Mkdir(name, mode)
	if err == nil {
		err = root.Chmod(name, mode) // whatever the umask
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return root.OpenRoot(name)
}

// make makes the working directory of a new attempt in the staging area, with
// empty inputs/ and outputs/. No runner reaches the staging area: paths in it are
// this process's own, and need no handle for each of their elements.
func (w workdirs) make(t ledger.Token, id job.ID) (*workdir, error) {
	d := &workdir{of: w, attempt: attemptDir(t), id: id}
	attempt := d.staged("")
	err := os.Mkdir(attempt, dirMode)
	if errors.Is(err, fs.ErrNotExist) { // the first of all
		if err = w.makeDir(stagingDir, 0o700); err != nil {
			return nil, workDirError("open the staging area", err)
		}
		err = os.Mkdir(attempt, dirMode)
	}
	if errors.Is(err, fs.ErrExist) { // of a daemon before this one
		if err := os.RemoveAll(attempt); err != nil {
			return nil, workDirError("clear the staging area", err)
		}
		err = os.Mkdir(attempt, dirMode)
	}
	if err != nil {
		return nil, workDirError("make the directory of the attempt", err)
	}
	made, err := os.Lstat(attempt)
	if err != nil {
		return nil, workDirError("make the directory of the attempt", err)
	}
	exact := made.Mode() == fs.ModeDir|dirMode // else a umask takes from it
	if !exact {
		err = os.Chmod(attempt, dirMode)
	}
	for _, name := range []string{d.staged(string(id)), d.staged(string(id), job.InputDir), d.staged(string(id), job.OutputDir)} {
		if err == nil {
			err = os.Mkdir(name, dirMode)
		}
		if err == nil && !exact {
			err = os.Chmod(name, dirMode)
		}
	}
	if err != nil {
		return nil, workDirError("make the directory of the job", err)
	}
	if d.job, err = os.OpenRoot(d.staged(string(id))); err != nil {
		return nil, workDirError("open the directory of the job", err)
	}
	return d, nil
}

// staged is the path of what lies in the attempt's directory, in the staging area.
func (d *workdir) staged(below ...string) string {
	return filepath.Join(append([]string{d.of.dataRoot, stagingDir, d.attempt}, below...)...)
}

// makeDir makes a directory in the data root.
func (w workdirs) makeDir(name string, mode os.FileMode) error {
	root, err := w.open()
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := subdir(root, name, mode)
	if err != nil {
		return err
	}
	return dir.Close()
}

// enter opens a directory in the data root, through no link that leads out of it.
// It does in three system calls what os.Root does in twenty.
func (w workdirs) enter(name string) (*os.File, error) {
	root, err := unix.Open(w.dataRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.6
		return w.enterSlowly(name)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(dir), name), nil
}

func (w workdirs) enterSlowly(name string) (*os.File, error) {
	root, err := os.OpenRoot(w.dataRoot)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(name)
}

// find opens the working directory that an earlier daemon gave to a runner; the
// error wraps fs.ErrNotExist where there is none.
func (w workdirs) find(t ledger.Token, id job.ID) (*workdir, error) {
	root, err := w.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d := &workdir{of: w, attempt: attemptDir(t), id: id, shown: true}
	d.job, err = root.OpenRoot(path.Join(w.sheep, d.attempt, string(id)))
	if errors.Is(err, fs.ErrNotExist) {
		d.legacy = true
		d.job, err = root.OpenRoot(path.Join(w.sheep, string(id)))
	}
	if err != nil {
		return nil, workDirError("open the directory of a job that is under way", err)
	}
	return d, nil
}

// writeInput writes a file that is known to be the job's only input.
func (d *workdir) writeInput(data []byte) error {
	if err := d.write(path.Join(job.InputDir, job.DefaultInput), data); err != nil {
		return workDirError("write the input", err)
	}
	return nil
}

// writeTrace tells the runner, where it looks, which trace its work belongs to.
func (d *workdir) writeTrace(t job.Trace) error {
	if t.IsZero() {
		return nil
	}
	text, err := t.MarshalText()
	if err == nil {
		err = d.write(job.TraceFile, text)
	}
	if err != nil {
		return workDirError("write the job's trace", err)
	}
	return nil
}

// write makes a file in a directory that no runner has seen yet.
func (d *workdir) write(name string, data []byte) error {
	f, err := durable.Open(d.staged(string(d.id), name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// show gives the directory to the owner and moves it into the sheep's directory,
// where the runner finds it. Nothing that lies there already is replaced.
func (d *workdir) show(to owner) error {
	if to != d.owner && to.set {
		if err := d.give(to); err != nil {
			return workDirError("give the working directory to the runner's user", err)
		}
	}
	sheep, err := d.of.enter(d.of.sheep)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.of.makeDir(d.of.sheep, dirMode); err == nil {
			sheep, err = d.of.enter(d.of.sheep)
		}
	}
	if err != nil {
		return workDirError("open the data directory of the sheep", err)
	}
	defer sheep.Close()
	err = unix.Renameat2(unix.AT_FDCWD, d.staged(), int(sheep.Fd()), d.attempt, unix.RENAME_NOREPLACE)
	if err != nil {
		return workDirError("move the working directory to the sheep", err)
	}
	d.shown = true
	return nil
}

// give changes the owner of all that lies in the directory, and of the attempt's
// directory around it. No runner has seen it yet.
func (d *workdir) give(to owner) error {
	root, err := d.of.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Lchown(path.Join(stagingDir, d.attempt), to.uid, to.gid); err != nil {
		return err
	}
	err = fs.WalkDir(d.job.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return d.job.Lchown(name, to.uid, to.gid)
	})
	if err == nil {
		d.owner = to
	}
	return err
}

// remove removes the directory with all that is in it. The handle is closed.
func (d *workdir) remove() error {
	d.job.Close()
	below, name := stagingDir, d.attempt
	if d.shown {
		below = d.of.sheep
	}
	if d.legacy {
		name = string(d.id)
	}
	if parent, err := d.of.enter(below); err == nil {
		err = removeShallow(int(parent.Fd()), name, shallow)
		_ = parent.Close()
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	root, err := d.of.open()
	if err != nil {
		return err
	}
	defer root.Close()
	parent, err := root.OpenRoot(below)
	if err != nil {
		return workDirError("open "+below, err)
	}
	defer parent.Close()
	if err := parent.RemoveAll(name); err != nil {
		return workDirError("remove the working directory", err)
	}
	return nil
}

// What removeShallow removes: directories so deep in each other, with so many
// bytes of names in each.
const (
	shallow  = 4
	fewNames = 4096
)

// removeShallow removes a directory as a small job leaves it, in as few system
// calls as that takes, and follows no link. Where it fails, some of the directory
// may be left: RemoveAll of os.Root copes with everything, and takes four times as
// many.
func removeShallow(parent int, name string, depth int) error {
	dir, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = removeEntries(dir, depth)
	_ = unix.Close(dir)
	if err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

func removeEntries(dir, depth int) error {
	var buffer [fewNames]byte
	n, err := unix.ReadDirent(dir, buffer[:])
	if err != nil {
		return err
	}
	var names []string
	_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	for _, name := range names {
		err := unix.Unlinkat(dir, name, 0)
		if errors.Is(err, unix.EISDIR) && depth > 1 {
			err = removeShallow(dir, name, depth-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leave closes the handle and leaves the directory to the next daemon.
func (d *workdir) leave() { d.job.Close() }

// clean removes what attempts of earlier daemons left in the sheep's directory,
// but for those to keep. What does not look like an attempt's is not touched.
func (w workdirs) clean(keep map[ledger.Token]job.ID) error {
	root, err := w.open()
	if err != nil {
		return err
	}
	defer root.Close()
	sheep, err := subdir(root, w.sheep, dirMode)
	if err != nil {
		return workDirError("open the data directory of the sheep", err)
	}
	defer sheep.Close()
	kept := make(map[string]bool)
	for t, id := range keep {
		kept[attemptDir(t)] = true
		kept[string(id)] = true
	}
	entries, err := readDir(sheep)
	if err != nil {
		return workDirError("read the data directory of the sheep", err)
	}
	var failed error
	for _, e := range entries {
		name := e.Name()
		if kept[name] || !isAttemptDir(name) && !isLegacyDir(sheep, e) {
			continue
		}
		failed = errors.Join(failed, sheep.RemoveAll(name))
	}
	if failed != nil {
		return workDirError("remove left-over working directories", failed)
	}
	return nil
}

// cleanStaging removes what earlier daemons were filling.
func cleanStaging(dataRoot string) error {
	root, err := workdirs{dataRoot: dataRoot}.open()
	if err != nil {
		return err
	}
	defer root.Close()
	durable.Spread(dataRoot)
	staging, err := root.OpenRoot(stagingDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return workDirError("open the staging area", err)
	}
	defer staging.Close()
	entries, err := readDir(staging)
	for _, e := range entries {
		if isAttemptDir(e.Name()) {
			err = errors.Join(err, staging.RemoveAll(e.Name()))
		}
	}
	if err != nil {
		return workDirError("clear the staging area", err)
	}
	return nil
}

// isLegacyDir reports whether an entry is a job's directory as it was before attempts
// had their own: a folder with inputs/, outputs/ and nothing else but hidden files.
func isLegacyDir(sheep *os.Root, e fs.DirEntry) bool {
	if !e.IsDir() {
		return false
	}
	if _, err := job.ParseID(e.Name()); err != nil {
		return false
	}
	dir, err := sheep.OpenRoot(e.Name())
	if err != nil {
		return false
	}
	defer dir.Close()
	entries, err := readDir(dir)
	if err != nil {
		return false
	}
	found := 0
	for _, e := range entries {
		switch {
		case e.IsDir() && (e.Name() == job.InputDir || e.Name() == job.OutputDir):
			found++
		case !strings.HasPrefix(e.Name(), "."):
			return false
		}
	}
	return found == 2
}

func readDir(root *os.Root) ([]fs.DirEntry, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.ReadDir(-1)
}

// workDirError marks a failure as the working directory's. It names what was
// being done and the cause, but no path: clients may see it.
func workDirError(doing string, err error) error {
	if errors.Is(err, storage.ErrWorkDir) {
		return err
	}
	cause := err
	var withPath *fs.PathError
	var withPaths *os.LinkError
	if errors.As(err, &withPath) {
		cause = withPath.Err
	} else if errors.As(err, &withPaths) {
		cause = withPaths.Err
	}
	return fmt.Errorf("%w: cannot %s: %w", storage.ErrWorkDir, doing, cause)
}
