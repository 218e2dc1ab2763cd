// Command cog stands in for cog and docker, which tests do not have, as far as the
// documentation types them: called cog, it builds an image for a model whose input text comes
// out in capitals; called docker, it pushes that to its registry; in the image, it is the
// server.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/iterait/shepherd/internal/cogtest"
)

// built is the file that holds the image.
const built = ".cog-image.tar"

func main() {
	var err error
	switch args := os.Args[1:]; filepath.Base(os.Args[0]) {
	case "cog":
		err = build(args)
	case "docker":
		err = push(args)
	default:
		err = serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// build is `cog build -t REFERENCE`, in the directory of a model.
func build(args []string) error {
	if len(args) != 3 || !slices.Equal(args[:2], []string{"build", "-t"}) {
		return fmt.Errorf("cog: not as documented: %q", args)
	}
	for _, file := range []string{"cog.yaml", "predict.py"} {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	tag, err := name.NewTag(args[2])
	if err != nil {
		return err
	}
	image, err := image()
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(built, tag, image); err != nil {
		return err
	}
	fmt.Println("Image built as", args[2])
	return nil
}

// image has this program as its server, and Cog's label.
func image() (v1.Image, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, dir := range []string{"usr", "usr/bin", "tmp"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/server", Mode: 0o755, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	_, err = w.Write(content)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"/usr/bin/server"}, Labels: map[string]string{"run.cog.version": "0.9.4"}, ExposedPorts: map[string]struct{}{"5000/tcp": {}}}
	return mutate.ConfigFile(image, config)
}

// push is `docker push REFERENCE` of what cog built.
func push(args []string) error {
	if len(args) != 2 || args[0] != "push" {
		return fmt.Errorf("docker: not as documented: %q", args)
	}
	tag, err := name.NewTag(args[1])
	if err != nil {
		return err
	}
	image, err := tarball.ImageFromPath(built, &tag)
	if err != nil {
		return err
	}
	if err := remote.Write(tag, image); err != nil {
		return err
	}
	digest, err := image.Digest()
	fmt.Printf("%s: digest: %s\n", tag.TagStr(), digest)
	return err
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return cogtest.Serve(ctx, cogtest.Model{
		Input:    `{"text": {"title": "Text", "type": "string"}}`,
		Required: []string{"text"},
		Output:   `{"title": "Output", "type": "string"}`,
		Predict: func(_ context.Context, input map[string]any, _ func(string), _ func(any)) (any, error) {
			text, ok := input["text"].(string)
			if !ok {
				return nil, errors.New("text is no text")
			}
			return strings.ToUpper(text), nil
		},
	})
}
