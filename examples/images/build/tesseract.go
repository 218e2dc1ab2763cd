package build

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/examples/images/layer"
)

// suite is the Debian release that the image is made of.
const suite = "bookworm"

// cleanUpTime bounds how long mmdebstrap may take to remove its files when it is
// terminated.
const cleanUpTime = 20 * time.Second

// packages are the packages of the image, without their dependencies.
var packages = []string{"base-files", "tesseract-ocr", "tesseract-ocr-eng"}

// unneeded are directories of Debian's packages that are removed. Licences,
// usr/share/doc/*/copyright, stay.
var unneeded = []string{
	"boot", "home", "media", "mnt", "opt", "root", "srv",
	"etc/apt", "usr/games", "usr/share/bug", "usr/share/doc-base", "usr/share/info",
	"usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/menu", "usr/share/icons",
	"var/cache", "var/lib/apt", "var/lib/dpkg", "var/log",
}

// tessdata is the directory of Tesseract's trained data.
const tessdata = "usr/share/tesseract-ocr/5/tessdata"

// Tesseract makes the image of the tesseract example: a root file system of
// Debian's packages made by mmdebstrap, shepherd-runner above it, and the model
// on top, which is Tesseract's English data and the runner's configuration.
// Mirror is the archive the packages come from, empty for Debian's own. It must
// be run by root.
func Tesseract(ctx context.Context, in Inputs, mirror string) (v1.Image, error) {
	if err := checkRunner(in.Runner); err != nil {
		return nil, err
	}
	root, err := layer.NewWriter(in.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Discard()
	data, err := layer.NewWriter(in.Dir)
	if err != nil {
		return nil, err
	}
	defer data.Discard()
	for _, e := range []entry{
		{"model", "", 0o755},
		{"model/config.yaml", filepath.Join(in.Model, "config.yaml"), 0o644},
	} {
		if err := add(data, e); err != nil { // "model" sorts before "usr"
			return nil, err
		}
	}
	err = debootstrap(ctx, mirror, func(h *tar.Header) *layer.Writer {
		switch name := path.Clean(h.Name); {
		case name == tessdata+"/eng.traineddata":
			return data
		case wanted(name):
			return root
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	program, err := files(in.Dir, entry{"usr/bin/shepherd-runner", in.Runner, 0o755})
	if err != nil {
		return nil, err
	}
	parts := []part{{nil, "Debian " + suite + ": " + strings.Join(packages, " ")}, {program, "shepherd-runner"}, {nil, "the model tesseract:v1"}}
	if parts[0].layer, err = root.Finish(); err != nil {
		return nil, err
	}
	if parts[2].layer, err = data.Finish(); err != nil {
		return nil, err
	}
	return assemble(runtime.GOARCH, v1.Config{
		Entrypoint: []string{"/usr/bin/shepherd-runner", "-p", port, "/model/config.yaml"},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
	}, parts)
}

// debootstrap streams a root file system with only the packages and their dependencies, without
// a shell. The packages are not configured.
func debootstrap(ctx context.Context, mirror string, sort func(*tar.Header) *layer.Writer) error {
	args := []string{
		"--variant=extract", "--format=tar", "--include=" + strings.Join(packages, ","),
		`--aptopt=Acquire::Retries "5"`, suite, "-",
	}
	if mirror != "" {
		args = append(args, mirror)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// When it is interrupted it kills its process group, which must not be ours.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up
	cmd.WaitDelay = cleanUpTime
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	archive, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: apt-get install mmdebstrap", err)
	}
	splitErr := split(archive, sort)
	archive.Close() // ends it if split returned early
	if err := cmd.Wait(); err != nil && splitErr == nil {
		return fmt.Errorf("mmdebstrap: %w:\n%s", err, lastLines(stderr.String(), 20))
	}
	return splitErr
}

// lastLines returns the end of a program's output, which has the error.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// wanted reports whether the image keeps a path of the root file system.
func wanted(name string) bool {
	switch {
	case name == ".":
		return false
	case name == "dev" || strings.HasPrefix(name, "dev/"): // the runtime creates the devices
		return false
	case name == tessdata+"/osd.traineddata": // 10 MB for detecting the orientation of a page
		return false
	}
	for _, dir := range unneeded {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return false
		}
	}
	if rest, ok := strings.CutPrefix(name, "usr/share/doc/"); ok {
		_, file, inside := strings.Cut(rest, "/")
		return !inside || file == "copyright"
	}
	return true
}
