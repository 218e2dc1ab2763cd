package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/examples/images/build"
)

// sandbox is a running `shepherdd sandbox`.
type sandbox struct {
	*process
	storage, registry    string // http://HOST:PORT
	accessKey, secretKey string
}

// startSandbox starts a sandbox on free ports and reads its addresses and keys from its output.
func startSandbox(bin, dir string) (*sandbox, error) {
	s := &sandbox{}
	args := []string{"sandbox", "--dir", filepath.Join(dir, "data"), "--storage-port", "0", "--registry-port", "0"}
	var err error
	s.process, err = start(dir, filepath.Join(bin, "shepherdd"), args, func(line string) bool {
		for prefix, value := range map[string]*string{
			"Storage (S3) at ": &s.storage, "Registry at ": &s.registry,
			"    access_key: ": &s.accessKey, "    secret_key: ": &s.secretKey,
		} {
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				*value = rest
			}
		}
		return strings.HasPrefix(line, "Ctrl-C")
	})
	if err != nil {
		return nil, err
	}
	fmt.Printf("The sandbox serves S3 at %s and a registry at %s\n", s.storage, s.registry)
	return s, nil
}

// pushImages builds both images and pushes them. It returns their references.
func pushImages(ctx context.Context, o options, dir, registry string) ([]string, error) {
	dir = filepath.Join(dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	model := func(name string) string { return filepath.Join(o.examples, name, "models", name, "v1") }
	fmt.Println("Building the images; Tesseract's packages come from Debian")
	digits, err := build.Digits(build.Inputs{Runner: filepath.Join(o.bin, "digits-runner"), Model: model("digits"), Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("build digits: %w", err)
	}
	tesseract, err := build.Tesseract(ctx, build.Inputs{Runner: filepath.Join(o.bin, "shepherd-runner"), Model: model("tesseract"), Dir: dir}, o.mirror)
	if err != nil {
		return nil, fmt.Errorf("build tesseract: %w", err)
	}
	var refs []string
	for _, image := range []struct {
		name  string
		image v1.Image
	}{{"digits:v1", digits}, {"tesseract:v1", tesseract}} {
		ref, err := build.Push(ctx, image.image, strings.TrimPrefix(registry, "http://"), image.name)
		if err != nil {
			return nil, err
		}
		size, err := build.Size(image.image)
		if err != nil {
			return nil, err
		}
		fmt.Printf("Pushed %s, %.1f MB\n", ref, float64(size)/1e6)
		refs = append(refs, ref)
	}
	return refs, nil
}

// daemon is a running shepherdd with container sheep.
type daemon struct {
	*process
	api string
}

const configuration = `data_root: '%[1]s/data'
state_dir: '%[1]s/state'
registry:
  url: %[2]s
storage:
  url: %[3]s
  access_key: %[4]s
  secret_key: %[5]s
containerd:
  address: '%[6]s'
  namespace: %[7]s
  snapshotter: %[8]s
api:
  host: 127.0.0.1
  port: 0
sheep:
`

// twoSheep are sheep that run all models.
const twoSheep = `  sheep_1:
    type: docker
  sheep_2:
    type: docker
`

// startDaemon starts shepherdd with the sheep and returns when it serves.
func startDaemon(bin, dir string, box *sandbox, ctd *containerd, sheep string) (*daemon, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(configuration, dir, box.registry, box.storage, box.accessKey, box.secretKey, ctd.address, namespace, ctd.snapshotter) + sheep
	config := filepath.Join(dir, "shepherd.yml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	d := &daemon{}
	var err error
	d.process, err = start(dir, filepath.Join(bin, "shepherdd"), []string{"-c", config}, func(line string) (served bool) {
		_, at, served := strings.Cut(line, "Shepherd API is available at ")
		if served {
			d.api = at
		}
		return served
	})
	if err != nil {
		return nil, err
	}
	fmt.Printf("shepherdd serves its API at %s, with container sheep\n\n", d.api)
	return d, nil
}
