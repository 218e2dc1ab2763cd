package package_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestReproducible packs a copy of the repository in another directory, and compares the
// results byte by byte.
func TestReproducible(t *testing.T) {
	first := dist(t)
	repository := filepath.Join(t.TempDir(), "another", "place")
	if err := os.MkdirAll(repository, 0o755); err != nil {
		t.Fatal(err)
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = "../.."
	files, err := list.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	pack := exec.Command("tar", "-cf", "-", "--null", "--files-from=-", "--ignore-failed-read")
	pack.Dir, pack.Stdin = "../..", bytes.NewReader(files)
	unpack := exec.Command("tar", "-xf", "-", "-C", repository)
	if unpack.Stdin, err = pack.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := pack.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := pack.Wait(); err != nil {
		t.Fatal(err)
	}
	// What the commit tells is not in the copy.
	for name, args := range map[string][]string{
		"SOURCE_DATE_EPOCH": {"log", "-1", "--format=%ct"},
		"COMMIT":            {"rev-parse", "--short=12", "HEAD"},
	} {
		t.Setenv(name, strings.TrimSpace(run(t, "git", args...)))
	}
	second := testenv.PackIn(t, repository, version, "dist")

	sums, err := os.ReadFile(filepath.Join(first, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(filepath.Join(second, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sums, again) {
		t.Errorf("the same input gives\n%sat first, and elsewhere\n%s", sums, again)
	}
}
