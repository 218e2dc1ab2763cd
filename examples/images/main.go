// Command images builds the example images without Docker and pushes them to a
// registry:
//
//	go run ./examples/images -registry 127.0.0.1:6000 [digits] [tesseract]
//
// digits:v1 is the static digits runner on an empty base; tesseract:v1 is
// Tesseract OCR on a root file system of Debian's packages, which needs root and
// mmdebstrap. Builds
// are reproducible: the same inputs give the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/examples/images/build"
)

type options struct {
	bin, examples, registry, version, mirror string
}

func main() {
	var o options
	flag.StringVar(&o.registry, "registry", "127.0.0.1:6000", "registry to push to")
	flag.StringVar(&o.version, "version", "v1", "tag of the images")
	flag.StringVar(&o.bin, "bin", "bin", "directory of digits-runner and shepherd-runner, built without cgo")
	flag.StringVar(&o.examples, "examples", "examples", "directory of the examples, for their models")
	flag.StringVar(&o.mirror, "mirror", "", "Debian archive; one of snapshot.debian.org gives the same packages for ever")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: images [flags] [digits] [tesseract]\n\nBuilds example images and pushes them to a registry.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	names := flag.Args()
	if len(names) == 0 {
		names = []string{"digits", "tesseract"}
	}
	if err := run(ctx, o, names); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, names []string) error {
	dir, err := os.MkdirTemp("", "shepherd-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range names {
		img, err := o.build(ctx, dir, name)
		if err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
		ref, err := build.Push(ctx, img, o.registry, name+":"+o.version)
		if err != nil {
			return err
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		fmt.Printf("pushed %s@%s\n", ref, digest)
	}
	return nil
}

func (o options) build(ctx context.Context, dir, name string) (v1.Image, error) {
	in := build.Inputs{Model: filepath.Join(o.examples, name, "models", name, "v1"), Dir: dir}
	switch name {
	case "digits":
		in.Runner = filepath.Join(o.bin, "digits-runner")
		return build.Digits(in)
	case "tesseract":
		in.Runner = filepath.Join(o.bin, "shepherd-runner")
		return build.Tesseract(ctx, in, o.mirror)
	}
	return nil, fmt.Errorf("there is no such example; there are digits and tesseract")
}
