package shepherd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
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
//	SHEEP/attempt-17/JOB_ID/{inputs,outputs}      from then on
//	.staging/attempt-17/                          while the daemon removes it
//
// A runner can write anywhere below its sheep's directory, and a container sees
// nothing else. So a working directory is filled where no runner reaches, and
// renamed in whole. After that it is reached only through an open handle, which
// follows no link out of it.
//
// The data root may hold what is not the daemon's. A directory of an attempt has
// MarkFile in it from before it is given a place until all else in it is removed:
// whenever the daemon is killed, what it leaves carries the mark or, in the staging
// area, is empty. A file system with a journal keeps that order over a loss of power.
const (
	stagingDir    = ".staging"
	attemptPrefix = "attempt-"
	dirMode       = 0o755
	fileMode      = 0o644
)

// MarkFile is the file that marks the directory of an attempt.
const MarkFile = ".shepherd-attempt"

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

// markText tells whoever finds a mark what it is.
const markText = "This directory was made by shepherdd for one attempt of a job. It is removed when the\n" +
	"attempt ends, or when shepherdd starts.\n"

func attemptDir(t ledger.Token) string { return attemptPrefix + strconv.FormatInt(int64(t), 10) }

// isAttemptDir reports whether a name is one that attemptDir gives out.
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
	if errors.Is(err, fs.ErrExist) { // of a daemon before this one, whose ledger was lost
		if err = w.clearStaged(d.attempt); err != nil {
			return nil, workDirError("clear the staging area", err)
		}
		err = os.Mkdir(attempt, dirMode)
	}
	if err != nil {
		return nil, workDirError("make the directory of the attempt", err)
	}
	if err := d.write(d.staged(MarkFile), []byte(markText)); err != nil {
		return nil, workDirError("mark the directory of the attempt", err)
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

// clearStaged removes the directory of an attempt from the staging area, where it is
// marked.
func (w workdirs) clearStaged(attempt string) error {
	root, err := w.open()
	if err != nil {
		return err
	}
	defer root.Close()
	staging, err := root.OpenRoot(stagingDir)
	if err != nil {
		return err
	}
	defer staging.Close()
	if !isMarked(staging, attempt) {
		return staging.Remove(attempt) // fails where there is anything in it
	}
	return discard(staging, attempt)
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
	if err := d.write(d.staged(string(d.id), job.InputDir, job.DefaultInput), data); err != nil {
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
		err = d.write(d.staged(string(d.id), job.TraceFile), text)
	}
	if err != nil {
		return workDirError("write the job's trace", err)
	}
	return nil
}

// write makes a file in the staging area.
func (d *workdir) write(path string, data []byte) error {
	f, err := durable.Open(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
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

// remove removes the directory with all that is in it: it first moves it to where no
// runner reaches it. The handle is closed.
func (d *workdir) remove() error {
	d.job.Close()
	if !d.legacy && d.removeSmall() == nil {
		return nil
	}
	root, err := d.of.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if d.shown {
		sheep, err := root.OpenRoot(d.of.sheep)
		if err != nil {
			return workDirError("open the data directory of the sheep", err)
		}
		defer sheep.Close()
		name := d.attempt
		if d.legacy {
			name = string(d.id)
		}
		if err := withdraw(root, sheep, name); err != nil {
			return workDirError("remove the working directory", err)
		}
	}
	staging, err := root.OpenRoot(stagingDir)
	switch {
	case err == nil:
		defer staging.Close()
		if err := discard(staging, d.attempt); err != nil {
			return workDirError("remove the working directory", err)
		}
	case !d.shown:
		return workDirError("open the staging area", err)
	}
	return nil
}

// removeSmall removes a directory as a small job leaves it. Where it fails, some of
// the directory may be left, in the sheep's or in the staging area.
func (d *workdir) removeSmall() error {
	if d.shown {
		sheep, err := d.of.enter(d.of.sheep)
		if err != nil {
			return err
		}
		defer sheep.Close()
		if err := unix.Renameat2(int(sheep.Fd()), d.attempt, unix.AT_FDCWD, d.staged(), unix.RENAME_NOREPLACE); err != nil {
			return err
		}
	}
	return removeShallow(unix.AT_FDCWD, d.staged(), shallow)
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
	defer unix.Close(dir)
	if err := removeEntries(dir, depth); err != nil {
		return err
	}
	if depth == shallow { // the mark goes last
		if err := unix.Unlinkat(dir, MarkFile, 0); err != nil {
			return err
		}
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
		if depth == shallow && name == MarkFile {
			continue
		}
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

// hadJob reports whether a sheep is known to have had a job.
type hadJob func(job.ID) (bool, error)

// clean removes what attempts of earlier daemons left in the sheep's directory, but
// for those to keep. It removes what carries the mark and, since daemons before this
// one did not mark directories, those of jobs that the sheep had. It returns the
// names of all others that look like directories of attempts.
func (w workdirs) clean(keep map[ledger.Token]job.ID, had hadJob) (left []string, err error) {
	root, err := w.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	sheep, err := subdir(root, w.sheep, dirMode)
	if err != nil {
		return nil, workDirError("open the data directory of the sheep", err)
	}
	defer sheep.Close()
	kept := make(map[string]bool)
	for t, id := range keep {
		kept[attemptDir(t)] = true
		kept[string(id)] = true
	}
	left, err = sweep(sheep, kept, had, func(name string) error { return withdraw(root, sheep, name) })
	if err != nil {
		return left, workDirError("remove left-over working directories", err)
	}
	return left, nil
}

// cleanStaging removes what earlier daemons were filling or removing, as clean does.
func cleanStaging(dataRoot string, had hadJob) (left []string, err error) {
	root, err := workdirs{dataRoot: dataRoot}.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	durable.Spread(dataRoot)
	staging, err := root.OpenRoot(stagingDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, workDirError("open the staging area", err)
	}
	defer staging.Close()
	left, err = sweep(staging, nil, had, func(name string) error { return discard(staging, name) })
	left = slices.DeleteFunc(left, func(name string) bool { return staging.Remove(name) == nil }) // empty: it has no mark yet
	if err != nil {
		return left, workDirError("clear the staging area", err)
	}
	return left, nil
}

// sweep calls remove for the directories in dir that are those of attempts, and
// returns the names of the others that look like it.
func sweep(dir *os.Root, kept map[string]bool, had hadJob, remove func(name string) error) (left []string, failed error) {
	entries, failed := readDir(dir)
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || kept[name] {
			continue
		}
		if !isMarked(dir, name) {
			id, found := unmarkedJob(dir, name)
			ours := false
			if found {
				var err error
				if ours, err = had(id); err != nil {
					failed = errors.Join(failed, err)
					continue
				}
			}
			if !ours {
				if found || isAttemptDir(name) {
					left = append(left, name)
				}
				continue
			}
		}
		failed = errors.Join(failed, remove(name))
	}
	slices.Sort(left)
	return left, failed
}

// mark makes a directory one of an attempt's.
func mark(dir *os.Root) error {
	f, err := dir.OpenFile(MarkFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(markText)
	return errors.Join(err, f.Close())
}

// isMarked reports whether a directory carries the mark.
func isMarked(parent *os.Root, name string) bool {
	info, err := parent.Lstat(path.Join(name, MarkFile))
	return err == nil && info.Mode().IsRegular()
}

// unmarkedJob is the job of a directory that a daemon made which did not mark it:
// the job's own, or one named for an attempt that holds the job's and nothing else.
func unmarkedJob(parent *os.Root, name string) (job.ID, bool) {
	if !isAttemptDir(name) {
		id, err := job.ParseID(name)
		return id, err == nil && isJobDir(parent, name)
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return "", false
	}
	defer dir.Close()
	entries, err := readDir(dir)
	if err != nil || len(entries) != 1 {
		return "", false
	}
	id, err := job.ParseID(entries[0].Name())
	return id, err == nil && isJobDir(dir, entries[0].Name())
}

// isJobDir reports whether a directory is as a job's: with inputs/, outputs/ and
// nothing else but hidden files.
func isJobDir(parent *os.Root, name string) bool {
	dir, err := parent.OpenRoot(name)
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

// withdraw removes a directory from a sheep's: it first moves it to where no runner
// reaches it, if it can.
func withdraw(root, sheep *os.Root, name string) error {
	staging, err := subdir(root, stagingDir, 0o700)
	if err != nil {
		return discard(sheep, name)
	}
	defer staging.Close()
	from, err := sheep.Open(".")
	if err != nil {
		return err
	}
	defer from.Close()
	into, err := staging.Open(".")
	if err != nil {
		return err
	}
	defer into.Close()
	err = unix.Renameat2(int(from.Fd()), name, int(into.Fd()), name, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil: // as where something is mounted in it
		return discard(sheep, name)
	}
	return discard(staging, name)
}

// discard removes a directory, its mark last: whenever the daemon is killed, what is
// left of it carries the mark.
func discard(parent *os.Root, name string) error {
	info, err := parent.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir(): // a runner can put a link in its place
		return parent.Remove(name)
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if !isMarked(parent, name) { // made by a daemon before this one, or a runner took the mark away
		if dir.RemoveAll(MarkFile) == nil {
			_ = mark(dir) // a full disk is no reason to keep what fills it
		}
	}
	for {
		removed, err := removeSome(dir)
		if err != nil {
			return err
		}
		if removed == 0 {
			return parent.RemoveAll(name)
		}
	}
}

// removeSome removes some of what is in a directory beside its mark: a runner may
// have put any number of files there.
func removeSome(dir *os.Root) (removed int, err error) {
	d, err := dir.Open(".")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	entries, err := d.ReadDir(1000)
	if err == io.EOF {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if e.Name() == MarkFile {
			continue
		}
		if err := dir.RemoveAll(e.Name()); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
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
