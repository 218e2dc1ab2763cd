package shepherd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// files makes files below a directory; a name that ends in a slash is a directory.
func files(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// namesIn lists a directory; none where there is no such directory.
func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Of what looks like working directories, only what is known to be the daemon's is
// removed.
func TestCleanByMark(t *testing.T) {
	claims.Hold(t, "L10")
	root := t.TempDir()
	for _, area := range []string{"dolly", stagingDir} {
		files(t, filepath.Join(root, area),
			"attempt-1/"+MarkFile, "attempt-1/job-1/inputs/input", "attempt-1/job-1/outputs/", // marked
			"attempt-2/"+MarkFile,                                      // its removal was cut short
			"attempt-3/job-3/inputs/input", "attempt-3/job-3/outputs/", // of a daemon that did not mark
			"job-4/inputs/input", "job-4/outputs/", "job-4/.traceparent", // of a daemon before attempts
			"attempt-5/"+MarkFile+"/x",                            // a mark is a file
			"attempt-6/notes",                                     // somebody's
			"attempt-7/run-7/inputs/", "attempt-7/run-7/outputs/", // looks like ours
			"attempt-8/job-3/inputs/", "attempt-8/job-3/outputs/", "attempt-8/notes",
			"run-9/inputs/", "run-9/outputs/",
			"thesis/chapter-1", "attempt-x/a", "attempt-/a", "attempt-10",
			"attempt-11/"+MarkFile, "attempt-11/job-11/inputs/", "attempt-11/job-11/outputs/",
		)
	}
	asked := make(map[job.ID]bool)
	had := func(id job.ID) (bool, error) {
		asked[id] = true
		return strings.HasPrefix(string(id), "job-"), nil
	}
	w := workdirs{dataRoot: root, sheep: "dolly"}
	left, err := w.clean(map[ledger.Token]job.ID{11: "job-11"}, had)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"attempt-5", "attempt-6", "attempt-7", "attempt-8", "run-9"}; !slices.Equal(left, want) {
		t.Errorf("told of %q, want %q", left, want)
	}
	if got, want := namesIn(t, root+"/dolly"), []string{"attempt-", "attempt-10", "attempt-11", "attempt-5", "attempt-6", "attempt-7", "attempt-8", "attempt-x", "run-9", "thesis"}; !slices.Equal(got, want) {
		t.Errorf("the sheep's directory has %q, want %q", got, want)
	}
	if !asked["run-7"] || !asked["run-9"] || asked["job-1"] {
		t.Errorf("asked for the jobs %v", asked)
	}
	files(t, filepath.Join(root, stagingDir), "attempt-12/", "attempt-13/") // not marked yet
	left, err = cleanStaging(root, had)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"attempt-5", "attempt-6", "attempt-7", "attempt-8", "run-9"}; !slices.Equal(left, want) {
		t.Errorf("in the staging area: told of %q, want %q", left, want)
	}
	if got, want := namesIn(t, filepath.Join(root, stagingDir)), []string{"attempt-", "attempt-10", "attempt-5", "attempt-6", "attempt-7", "attempt-8", "attempt-x", "run-9", "thesis"}; !slices.Equal(got, want) {
		t.Errorf("the staging area has %q, want %q", got, want)
	}
}

// A ledger that does not answer is no reason to remove anything.
func TestCleanWithoutAnswer(t *testing.T) {
	root := t.TempDir()
	files(t, root, "dolly/attempt-3/job-3/inputs/", "dolly/attempt-3/job-3/outputs/", "dolly/attempt-4/"+MarkFile)
	_, err := workdirs{dataRoot: root, sheep: "dolly"}.clean(nil, func(job.ID) (bool, error) { return false, fs.ErrClosed })
	if err == nil {
		t.Error("the error is not told")
	}
	if got := namesIn(t, root+"/dolly"); !slices.Equal(got, []string{"attempt-3"}) {
		t.Errorf("left: %q", got)
	}
}

// Whatever a runner does to its directory, it is removed, and nothing else.
func TestRemoveWhatARunnerLeft(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, sheep string){
		"nothing":     func(*testing.T, string) {},
		"took away":   func(t *testing.T, sheep string) { must(t, os.RemoveAll(sheep+"/attempt-1")) },
		"no mark":     func(t *testing.T, sheep string) { must(t, os.Remove(sheep+"/attempt-1/"+MarkFile)) },
		"many files":  func(t *testing.T, sheep string) { files(t, sheep+"/attempt-1", manyNames(2500)...) },
		"linked mark": func(t *testing.T, sheep string) { relink(t, sheep+"/attempt-1/"+MarkFile, "../attempt-2/x") },
		"mark is full": func(t *testing.T, sheep string) {
			relink(t, sheep+"/attempt-1/"+MarkFile, "")
			files(t, sheep, "attempt-1/"+MarkFile+"/a/b")
		},
		"linked": func(t *testing.T, sheep string) { relink(t, sheep+"/attempt-1", "attempt-2") },
		"a file": func(t *testing.T, sheep string) { relink(t, sheep+"/attempt-1", ""); files(t, sheep, "attempt-1") },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			w := workdirs{dataRoot: root, sheep: "dolly"}
			d, err := w.make(1, "job-1")
			must(t, err)
			must(t, d.show(owner{}))
			files(t, root, "dolly/attempt-2/x")
			change(t, root+"/dolly")
			must(t, d.remove())
			if got := namesIn(t, root+"/dolly"); !slices.Equal(got, []string{"attempt-2"}) {
				t.Errorf("the sheep's directory has %q", got)
			}
			if got := namesIn(t, root+"/dolly/attempt-2"); !slices.Equal(got, []string{"x"}) {
				t.Errorf("another directory has %q", got)
			}
			if got := namesIn(t, filepath.Join(root, stagingDir)); len(got) > 0 {
				t.Errorf("the staging area has %q", got)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// relink puts a link in the place of what is there, or nothing.
func relink(t *testing.T, path, to string) {
	t.Helper()
	must(t, os.RemoveAll(path))
	if to != "" {
		must(t, os.Symlink(to, path))
	}
}

func manyNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("f", i))
	}
	return names
}

// A daemon that is killed at any moment leaves directories that carry the mark, or
// are empty and in the staging area; the next one removes them all.
func TestKilledWithWorkingDirectories(t *testing.T) {
	claims.Hold(t, "L10")
	const place = "SHEPHERD_TEST_WORKDIRS"
	if root := os.Getenv(place); root != "" {
		w := workdirs{dataRoot: root, sheep: "dolly"}
		for token := ledger.Token(1); ; token++ {
			d, err := w.make(token, "job")
			must(t, err)
			for i := range 30 {
				must(t, d.write(d.staged("job", fmt.Sprint("inputs/", i)), nil))
			}
			if token%3 > 0 {
				must(t, d.show(owner{}))
			}
			must(t, d.remove())
		}
	}
	root := t.TempDir()
	w := workdirs{dataRoot: root, sheep: "dolly"}
	unknown := func(job.ID) (bool, error) { return false, nil }
	for round := range 25 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWithWorkingDirectories$")
		cmd.Env = append(os.Environ(), place+"="+root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for len(ended) == 0 && len(namesIn(t, filepath.Join(root, stagingDir))) == 0 { // until it is at it
			time.Sleep(50 * time.Microsecond)
		}
		time.Sleep(time.Duration(round) * 37 * time.Microsecond)
		_ = cmd.Process.Kill()
		<-ended
		for _, name := range namesIn(t, root+"/dolly") {
			if _, err := os.Lstat(filepath.Join(root, "dolly", name, MarkFile)); err != nil {
				t.Errorf("round %d: the sheep has %s: %v", round, name, err)
			}
		}
		left, err := w.clean(nil, unknown)
		leftStaging, errStaging := cleanStaging(root, unknown)
		if err != nil || errStaging != nil || len(left)+len(leftStaging) > 0 {
			t.Errorf("round %d: %v, %v; left %q, %q", round, err, errStaging, left, leftStaging)
		}
		if got := append(namesIn(t, root+"/dolly"), namesIn(t, filepath.Join(root, stagingDir))...); len(got) > 0 {
			t.Fatalf("round %d: left %q", round, got)
		}
	}
}

// What a runner leaves in its working directory is removed whatever it is, and
// nothing outside is.
func TestWorkdirIsRemoved(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(t *testing.T, dir, outside string)
	}{
		{"a small job", func(t *testing.T, dir, _ string) { files(t, dir, "outputs/output") }},
		{"many files", func(t *testing.T, dir, _ string) {
			for i := range 500 {
				files(t, dir, "outputs/"+strings.Repeat("n", 40)+strconv.Itoa(i))
			}
		}},
		{"deep directories", func(t *testing.T, dir, _ string) {
			files(t, dir, "outputs"+strings.Repeat("/d", 20)+"/file")
		}},
		{"links that lead out", func(t *testing.T, dir, outside string) {
			for _, name := range []string{"outputs/link", "link"} {
				relink(t, filepath.Join(dir, name), outside)
			}
			relink(t, filepath.Join(dir, "inputs"), outside)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			outside := t.TempDir()
			files(t, outside, "kept")
			w := workdirs{dataRoot: filepath.Join(t.TempDir(), "data"), sheep: "sheep"}
			d, err := w.make(7, "job")
			must(t, err)
			must(t, d.show(owner{}))
			c.fill(t, filepath.Join(d.ioDataRoot(), "job"), outside)
			must(t, d.remove())
			if entries, err := os.ReadDir(filepath.Join(w.dataRoot, w.sheep)); err != nil || len(entries) > 0 {
				t.Errorf("left are %v, %v", entries, err)
			}
			if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
				t.Error(err)
			}
		})
	}
}

// What cannot be made whole on a full disk is not left there in part.
func TestMakeOnAFullDisk(t *testing.T) {
	for _, inodes := range []int{3, 4, 5, 6, 7} { // the root, the staging area and so much of what follows
		root := t.TempDir()
		if err := unix.Mount("shepherd-test", root, "tmpfs", 0, fmt.Sprintf("size=1m,nr_inodes=%d", inodes)); err != nil {
			testenv.Missing(t, "mounting a tmpfs", "run the tests as root: "+err.Error())
		}
		t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
		w := workdirs{dataRoot: root, sheep: "dolly"}
		d, err := w.make(1, "job-1")
		if inodes == 7 { // the attempt's, its mark, the job's, inputs/ and outputs/
			must(t, err)
			must(t, d.remove())
		} else if !errors.Is(err, storage.ErrWorkDir) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("with %d inodes: %v", inodes, err)
		}
		if got := namesIn(t, filepath.Join(root, stagingDir)); len(got) > 0 {
			t.Errorf("with %d inodes the staging area has %q", inodes, got)
		}
	}
	// There are inodes, and no room for the mark's text.
	root := t.TempDir()
	if err := unix.Mount("shepherd-test", root, "tmpfs", 0, "size=64k"); err != nil {
		testenv.Missing(t, "mounting a tmpfs", "run the tests as root: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	if err := os.WriteFile(root+"/others", make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := (workdirs{dataRoot: root, sheep: "dolly"}).make(1, "job-1"); !errors.Is(err, storage.ErrWorkDir) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("without room: %v", err)
	}
	if got := namesIn(t, filepath.Join(root, stagingDir)); len(got) > 0 {
		t.Errorf("without room the staging area has %q", got)
	}
}

// Where the staging area cannot take a directory, as on a disk that is broken, it is
// removed in its place.
func TestRemoveWithoutStagingArea(t *testing.T) {
	w := workdirs{dataRoot: t.TempDir(), sheep: "dolly"}
	d, err := w.make(1, "job-1")
	must(t, err)
	must(t, d.show(owner{}))
	relink(t, filepath.Join(w.dataRoot, stagingDir), "")
	files(t, w.dataRoot, stagingDir)
	must(t, d.remove())
	if got := namesIn(t, filepath.Join(w.dataRoot, "dolly")); len(got) > 0 {
		t.Errorf("the sheep's directory has %q", got)
	}
}

// A sheep's directory that is a link out of the data root is not entered.
func TestWorkdirStaysInDataRoot(t *testing.T) {
	outside := t.TempDir()
	w := workdirs{dataRoot: t.TempDir(), sheep: "sheep"}
	if err := os.Symlink(outside, filepath.Join(w.dataRoot, w.sheep)); err != nil {
		t.Fatal(err)
	}
	d, err := w.make(7, "job")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.show(owner{}); err == nil {
		t.Error("the working directory was moved out of the data root")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	if err := d.remove(); err != nil {
		t.Error(err)
	}
}

// A runner that puts a link in the place of its attempt's directory, or of the job's in it,
// does not get the next daemon to take another sheep's job for its own.
func TestFoundWorkdirIsNoLink(t *testing.T) {
	root := t.TempDir()
	w := workdirs{dataRoot: root, sheep: "dolly"}
	other := workdirs{dataRoot: root, sheep: "other"}
	for token, id := range map[ledger.Token]job.ID{7: "job", 8: "secret"} {
		of := w
		if id == "secret" {
			of = other
		}
		d, err := of.make(token, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.show(owner{}); err != nil {
			t.Fatal(err)
		}
		d.leave()
	}
	attempt := filepath.Join(root, "dolly", "attempt-7")
	if d, err := w.find(7, "job"); err != nil {
		t.Errorf("before: %v", err)
	} else {
		d.leave()
	}
	if err := os.Mkdir(filepath.Join(root, "other", "attempt-8", "job"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"attempt-7": "../other/attempt-8", "attempt-7/job": "../../other/attempt-8/secret",
		"job": "../other/attempt-8/secret", // where an older version had it
	} {
		if err := os.RemoveAll(attempt); err != nil {
			t.Fatal(err)
		}
		place := filepath.Join(root, "dolly", name)
		if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, place); err != nil {
			t.Fatal(err)
		}
		if d, err := w.find(7, "job"); err == nil {
			t.Errorf("with %s as a link it finds another sheep's job", name)
			d.leave()
		}
		if err := os.Remove(place); err != nil {
			t.Fatal(err)
		}
	}
}

// A daemon that is not root removes directories that a runner of its user has made read-only,
// as package managers do.
func TestRemoveReadOnlyDirectories(t *testing.T) {
	w := workdirs{dataRoot: t.TempDir(), sheep: "dolly"}
	d, err := w.make(7, "job")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.show(owner{}); err != nil {
		t.Fatal(err)
	}
	outputs := filepath.Join(w.dataRoot, "dolly", "attempt-7", "job", "outputs")
	files(t, outputs, "mod/cache/a", "mod/cache/b/c", "locked/x", "other")
	for name, mode := range map[string]fs.FileMode{"mod/cache/b": 0o555, "mod/cache": 0o555, "mod": 0o500, "locked": 0, ".": 0o555} {
		defer os.Chmod(filepath.Join(outputs, name), 0o755)
		if err := os.Chmod(filepath.Join(outputs, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	asUser(t, func() { err = d.remove() })
	if err != nil {
		t.Error(err)
	}
	if got := append(namesIn(t, filepath.Join(w.dataRoot, "dolly")), namesIn(t, filepath.Join(w.dataRoot, stagingDir))...); len(got) > 0 {
		t.Errorf("left are %q", got)
	}
}

// asUser calls f on a thread without root's right to ignore the permissions of files.
func asUser(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		if err == nil {
			data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
			err = unix.Capset(&header, &data[0])
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The mode of working directories does not depend on the umask, and what an
// earlier daemon left in the staging area is replaced.
func TestWorkdirModes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	w := workdirs{dataRoot: t.TempDir(), sheep: "sheep"}
	for range 2 {
		d, err := w.make(7, "job")
		if err != nil {
			t.Fatal(err)
		}
		defer d.leave()
		for _, name := range []string{d.staged(""), d.staged("job"), d.staged("job", "inputs"), d.staged("job", "outputs")} {
			if info, err := os.Stat(name); err != nil || info.Mode() != fs.ModeDir|dirMode {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
		if err := d.writeInput([]byte("left over")); err != nil {
			t.Fatal(err)
		}
	}
}
