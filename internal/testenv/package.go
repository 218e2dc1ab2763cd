package testenv

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Pack runs `make TARGET…` for the version, into a temporary folder, and returns
// the folder: `deb` leaves a Debian package there, `dist` a tarball, a bill of
// materials and checksums beside it.
func Pack(t testing.TB, version string, targets ...string) string {
	t.Helper()
	return PackIn(t, moduleRoot(t), version, targets...)
}

// PackIn is Pack for a copy of the repository.
func PackIn(t testing.TB, repository, version string, targets ...string) string {
	t.Helper()
	dir := t.TempDir()
	args := append([]string{
		"--no-print-directory", "VERSION=" + version, "BIN=" + filepath.Join(dir, "bin"), "DIST=" + dir,
		"CACHE=" + filepath.Join(dir, "cache"),
	}, targets...)
	cmd := exec.Command(Command(t, "make", "make"), args...)
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %v: %v:\n%s", targets, err, tail(out))
	}
	return dir
}

// DebianPackage is Pack for the Debian package, and returns its path. It is not
// compressed, which takes longer than all the rest.
func DebianPackage(t testing.TB, version string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(Pack(t, version, "deb", "COMPRESSION=none"), "shepherd_*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("make deb left %v, %v", found, err)
	}
	return found[0]
}
