package testenv

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// ProgramsVar names the environment variable with the folder of programs that were
// built before, for machines without Go (`make test-vm`).
const ProgramsVar = "SHEPHERD_TEST_PROGRAMS"

// Build builds the repository's program in folder pkg ("cmd/shepherd-shim") into the
// file to, without cgo. With ProgramsVar it copies the program of that name instead.
func Build(to, pkg string) error {
	if dir := os.Getenv(ProgramsVar); dir != "" {
		return copyProgram(to, filepath.Join(dir, path.Base(pkg)))
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "github.com/iterait/shepherd/"+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return nil
}

func copyProgram(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		target.Close()
		return err
	}
	return target.Close()
}
