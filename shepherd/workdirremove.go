package shepherd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// remove removes the directory, after moving it to where no runner can reach it. It closes
// the handle.
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

// removeSmall removes the directory of a typical small job. If it fails, part of the
// directory may be left in the sheep's directory or in the staging area.
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

// Limits of removeShallow: the depth of directories, and the bytes of names in each.
const (
	shallow  = 4
	fewNames = 4096
)

// removeShallow removes the directory of a typical small job with few system calls and
// without following links; os.Root.RemoveAll handles every case but needs four times as
// many. If it fails, part of the directory may be left.
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

// withdraw removes a directory from a sheep's directory, after moving it to where no runner
// can reach it if possible.
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
	case err != nil: // for example, something is mounted in it
		return discard(sheep, name)
	}
	return discard(staging, name)
}

// discard removes a directory, its mark last: what is left when the daemon is killed still
// carries the mark. Directories in it may be read-only.
func discard(parent *os.Root, name string) error {
	err := discardWritable(parent, name)
	if errors.Is(err, fs.ErrPermission) && unlock(parent, name) == nil {
		err = discardWritable(parent, name)
	}
	return err
}

// unlock gives the user of this process all permissions on a directory and on those in it. It
// fails where they belong to another user.
func unlock(parent *os.Root, name string) error {
	if err := parent.Chmod(name, 0o700); err != nil {
		return err
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer list.Close()
	for {
		entries, err := list.ReadDir(1000)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := unlock(dir, e.Name()); err != nil {
					return err
				}
			}
		}
	}
}

// discardWritable does discard's work where this process may change all directories.
func discardWritable(parent *os.Root, name string) error {
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
	if !isMarked(parent, name) { // made by an older version, or a runner removed the mark
		if dir.RemoveAll(MarkFile) == nil {
			_ = mark(dir) // best effort: on a full disk the directory is removed without it
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

// removeSome removes up to 1000 entries of a directory except its mark: a runner may have
// created any number of files.
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

// hadJob reports whether a sheep had a job, according to the ledger.
type hadJob func(job.ID) (bool, error)

// clean removes the directories that attempts of earlier daemons left in the sheep's
// directory, except those in keep: those that carry the mark and, because older versions set
// no mark, those of jobs that the sheep had. It returns the names of all others that look
// like directories of attempts.
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

// cleanStaging does what clean does for the staging area.
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
	left = slices.DeleteFunc(left, func(name string) bool { return staging.Remove(name) == nil }) // an empty directory was not marked yet
	if err != nil {
		return left, workDirError("clear the staging area", err)
	}
	return left, nil
}

// sweep calls remove for the directories of attempts in dir, and returns the names of the
// others that look like one.
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

// mark marks a directory as an attempt's.
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

// unmarkedJob returns the job of a directory made by an older version that set no mark: the
// job's own directory, or an attempt's that contains the job's and nothing else.
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

// isJobDir reports whether a directory looks like a job's: it contains inputs/, outputs/ and
// otherwise only hidden files.
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
