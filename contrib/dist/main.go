// Command dist packages an installed tree: as a Debian package and a tarball, with a bill of
// materials and checksums. `make deb` and `make dist` call it from the repository's root. It is
// a module of its own, so that its dependencies are not those of shepherd.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// release describes a release.
type release struct {
	Version    string // as `shepherdd version` prints it
	Arch       string // as Go names it
	Maintainer string
	Time       time.Time // of the commit; all packaged files have it
	Tree       string    // the files of the tarball
	Root       string    // the files of the Debian package
	Out        string    // the directory of the results
	// Compression replaces the Debian package's (xz): zstd, gzip or none.
	Compression string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "dist: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var r release
	var epoch int64
	flags := flag.NewFlagSet("dist", flag.ContinueOnError)
	flags.StringVar(&r.Version, "version", "", "version, as git describe gives it")
	flags.StringVar(&r.Arch, "arch", "amd64", "architecture, as Go names it")
	flags.StringVar(&r.Maintainer, "maintainer", "", "maintainer of the Debian package")
	flags.Int64Var(&epoch, "epoch", 0, "the time of everything packed, in seconds since 1970")
	flags.StringVar(&r.Tree, "tree", "dist/tree", "what the tarball holds")
	flags.StringVar(&r.Root, "root", "dist/root", "what the Debian package holds")
	flags.StringVar(&r.Compression, "compression", "", "compression of the Debian package instead of xz: zstd, gzip or none")
	flags.StringVar(&r.Out, "out", "dist", "where results go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if r.Version == "" || epoch <= 0 {
		return errors.New("-version and -epoch are needed")
	}
	r.Time = time.Unix(epoch, 0).UTC()
	steps := map[string]func(release) (string, error){"deb": writeDeb, "tarball": writeTarball, "sbom": writeSBOM}
	var written []string
	for _, what := range flags.Args() {
		if what == "sums" {
			if err := writeSums(r.Out, written); err != nil {
				return fmt.Errorf("write the checksums: %w", err)
			}
			continue
		}
		step := steps[what]
		if step == nil {
			return fmt.Errorf("unknown result %q; expected deb, tarball, sbom or sums", what)
		}
		path, err := step(r)
		if err != nil {
			return fmt.Errorf("write the %s: %w", what, err)
		}
		written = append(written, path)
		fmt.Println(filepath.Clean(path))
	}
	return nil
}

// writeTo writes a file atomically.
func writeTo(path string, write func(*os.File) error) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(f.Name(), path)
}
