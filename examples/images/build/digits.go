package build

import (
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Digits makes the image of the digits example: the static runner, which is
// examples/digits/runner, on an empty base, and the model's config.yaml and
// weights.bin above it.
func Digits(in Inputs) (v1.Image, error) { return digits(runtime.GOARCH, in) }

func digits(arch string, in Inputs) (v1.Image, error) {
	if err := checkRunner(in.Runner); err != nil {
		return nil, err
	}
	base, err := files(in.Dir,
		entry{"digits-runner", in.Runner, 0o755},
		entry{"tmp", "", 0o1777},
	)
	if err != nil {
		return nil, err
	}
	model, err := files(in.Dir,
		entry{"model", "", 0o755},
		entry{"model/config.yaml", filepath.Join(in.Model, "config.yaml"), 0o644},
		entry{"model/weights.bin", filepath.Join(in.Model, "weights.bin"), 0o644},
	)
	if err != nil {
		return nil, err
	}
	return assemble(arch, v1.Config{
		Entrypoint: []string{"/digits-runner", "-p", port, "/model/config.yaml"},
		WorkingDir: "/",
	}, []part{{base, "the static digits runner"}, {model, "the model digits:v1"}})
}
