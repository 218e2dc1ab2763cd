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

// Layout of working directories below the data root:
//
//	.staging/attempt-17/JOB_ID/{inputs,outputs}   while the daemon fills it
//	SHEEP/attempt-17/JOB_ID/{inputs,outputs}      from then on
//	.staging/attempt-17/                          while the daemon removes it
//
// A runner can write anywhere below its sheep's directory, and a container sees nothing
// else. So a working directory is filled where no runner can reach it, and renamed into the
// sheep's directory as a whole. After that the daemon accesses it only through an open
// handle, which follows no link out of it.
//
// The data root may contain files of others. The directory of an attempt contains MarkFile
// before it is moved to its place and until everything else in it is removed: whenever the
// daemon is killed, a directory that it leaves carries the mark or, in the staging area, is
// empty. A journaling file system keeps that order across a power loss.
const (
	stagingDir    = ".staging"
	attemptPrefix = "attempt-"
	dirMode       = 0o755
	fileMode      = 0o644
)

// MarkFile is the file that marks the directory of an attempt.
const MarkFile = ".shepherd-attempt"

// workdirs creates the working directories of one sheep's attempts.
type workdirs struct {
	dataRoot string // absolute
	sheep    string
}

// workdir is the working directory of one attempt. It is not safe for concurrent use.
type workdir struct {
	of      workdirs
	attempt string // the name of the attempt's directory
	id      job.ID
	job     *os.Root // the job's directory
	shown   bool     // it was moved to the sheep's directory
	owner   owner    // the owner of its files
	legacy  bool     // made by an older version, directly in the sheep's directory
}

// owner is a user that files belong to. The zero owner is this process's user.
type owner struct {
	set      bool
	uid, gid int
}

// markText explains the mark to people who find it.
const markText = "This directory was made by shepherdd for one attempt of a job. It is removed when the\n" +
	"attempt ends, or when shepherdd starts.\n"

func attemptDir(t ledger.Token) string { return attemptPrefix + strconv.FormatInt(int64(t), 10) }

// isAttemptDir reports whether attemptDir can return the name.
func isAttemptDir(name string) bool {
	digits, ok := strings.CutPrefix(name, attemptPrefix)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// ioDataRoot returns the io_data_root for the runner.
func (d *workdir) ioDataRoot() string {
	if d.legacy {
		return filepath.Join(d.of.dataRoot, d.of.sheep)
	}
	return filepath.Join(d.of.dataRoot, d.of.sheep, d.attempt)
}

// open opens the data root, creating it if it is missing.
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

// subdir opens a directory below root, creating it if it is missing.
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

// make creates the working directory of a new attempt in the staging area, with empty
// inputs/ and outputs/. No runner can reach the staging area, so its paths are safe to use
// without a handle.
func (w workdirs) make(t ledger.Token, id job.ID) (*workdir, error) {
	d := &workdir{of: w, attempt: attemptDir(t), id: id}
	attempt := d.staged("")
	err := os.Mkdir(attempt, dirMode)
	if errors.Is(err, fs.ErrNotExist) { // the staging area does not exist yet
		if err = w.makeDir(stagingDir, 0o700); err != nil {
			return nil, workDirError("open the staging area", err)
		}
		err = os.Mkdir(attempt, dirMode)
	}
	if errors.Is(err, fs.ErrExist) { // left by an earlier daemon whose ledger was lost
		if err = w.clearStaged(d.attempt); err != nil {
			return nil, workDirError("clear the staging area", err)
		}
		err = os.Mkdir(attempt, dirMode)
	}
	if err != nil {
		return nil, workDirError("make the directory of the attempt", err)
	}
	if err := d.fill(); err != nil {
		_ = w.clearStaged(d.attempt) // best effort: the next daemon clears it otherwise
		return nil, err
	}
	return d, nil
}

// fill marks the attempt's new directory and creates the job's directories in it.
func (d *workdir) fill() error {
	attempt, id := d.staged(""), string(d.id)
	if err := d.write(d.staged(MarkFile), []byte(markText)); err != nil {
		return workDirError("mark the directory of the attempt", err)
	}
	made, err := os.Lstat(attempt)
	if err != nil {
		return workDirError("make the directory of the attempt", err)
	}
	exact := made.Mode() == fs.ModeDir|dirMode // false if a umask removed permissions
	if !exact {
		err = os.Chmod(attempt, dirMode)
	}
	for _, name := range []string{d.staged(id), d.staged(id, job.InputDir), d.staged(id, job.OutputDir)} {
		if err == nil {
			err = os.Mkdir(name, dirMode)
		}
		if err == nil && !exact {
			err = os.Chmod(name, dirMode)
		}
	}
	if err != nil {
		return workDirError("make the directory of the job", err)
	}
	if d.job, err = os.OpenRoot(d.staged(id)); err != nil {
		return workDirError("open the directory of the job", err)
	}
	return nil
}

// clearStaged removes an attempt's directory from the staging area, if it is marked or
// empty.
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

// staged returns a path in the attempt's directory in the staging area.
func (d *workdir) staged(below ...string) string {
	return filepath.Join(append([]string{d.of.dataRoot, stagingDir, d.attempt}, below...)...)
}

// makeDir creates a directory in the data root.
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

// enter opens a directory in the data root without following links out of it. It takes three
// system calls; os.Root takes twenty.
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

// find opens the working directory that an earlier daemon gave to a runner. The error wraps
// fs.ErrNotExist if there is none. The runner may have put links in its place, so they are
// followed no further than the sheep's directory, which the runner can read anyway.
func (w workdirs) find(t ledger.Token, id job.ID) (*workdir, error) {
	root, err := w.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d := &workdir{of: w, attempt: attemptDir(t), id: id, shown: true}
	sheep, err := root.OpenRoot(w.sheep)
	if err == nil {
		defer sheep.Close()
		d.job, err = sheep.OpenRoot(path.Join(d.attempt, string(id)))
		if errors.Is(err, fs.ErrNotExist) {
			d.legacy = true
			d.job, err = sheep.OpenRoot(string(id))
		}
	}
	if err != nil {
		return nil, workDirError("open the directory of a job that is under way", err)
	}
	return d, nil
}

// writeInput writes the input file of a job that has only one.
func (d *workdir) writeInput(data []byte) error {
	if err := d.write(d.staged(string(d.id), job.InputDir, job.DefaultInput), data); err != nil {
		return workDirError("write the input", err)
	}
	return nil
}

// writeTrace writes the trace context to the file where the runner reads it.
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

// write creates a file in the staging area.
func (d *workdir) write(path string, data []byte) error {
	f, err := durable.Open(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// show gives the directory to the owner and moves it into the sheep's directory, where the
// runner finds it. It replaces nothing.
func (d *workdir) show(to owner) error {
	if to != d.owner && to.set {
		if err := d.chown(to); err != nil {
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

// chown changes the owner of the attempt's directory and everything in it. No runner has had
// access to it yet.
func (d *workdir) chown(to owner) error {
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

// leave closes the handle and leaves the directory to the next daemon.
func (d *workdir) leave() { d.job.Close() }

func readDir(root *os.Root) ([]fs.DirEntry, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.ReadDir(-1)
}

// workDirError wraps a failure in storage.ErrWorkDir. The message contains what was being
// done and the cause, but no path, because clients may see it.
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
