package image

import (
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// What is no image for this machine is said before any layer is fetched.
func TestNoImageForThisMachine(t *testing.T)            { noImage(t, testenv.StartContainerd(t)) }
func TestNoImageForThisMachineContainerd2(t *testing.T) { noImage(t, testenv.StartContainerd2(t)) }

func noImage(t *testing.T, daemon *testenv.Containerd) {
	h := newHomeOn(t, daemon, testenv.RegistryConfig{})
	layers := h.layers(1, 1<<20, 1)
	artifact := func(config types.MediaType, layer types.MediaType) v1.Image {
		img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(make([]byte, 1<<20), layer), MediaType: layer})
		if err != nil {
			t.Fatal(err)
		}
		return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), config)
	}
	foreign := testenv.Image(t, v1.Config{}, layers...)
	file, err := foreign.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "s390x"
	if foreign, err = mutate.ConfigFile(foreign, file); err != nil {
		t.Fatal(err)
	}
	windows := file.DeepCopy()
	windows.OS, windows.Architecture = "windows", "amd64"
	server, err := mutate.ConfigFile(foreign, windows)
	if err != nil {
		t.Fatal(err)
	}
	index := func(platforms ...*v1.Platform) v1.ImageIndex {
		idx := v1.ImageIndex(empty.Index)
		for i, p := range platforms {
			idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
				Add: testenv.Image(t, v1.Config{Labels: map[string]string{"n": string(rune('a' + i))}}, layers...), Descriptor: v1.Descriptor{Platform: p},
			})
		}
		return idx
	}
	for name, c := range map[string]struct {
		push  any
		class func(error) bool
		want  string
	}{
		"modelpack": {artifact("application/vnd.cncf.model.config.v1+json", "application/vnd.cncf.model.weight.v1.tar"), errdefs.IsFailedPrecondition,
			"not a container image but an artifact of the type application/vnd.cncf.model.config.v1+json"},
		"oras":   {artifact("application/vnd.oci.empty.v1+json", "application/octet-stream"), errdefs.IsFailedPrecondition, "artifact of the type application/vnd.oci.empty.v1+json"},
		"ollama": {artifact(types.DockerConfigJSON, "application/vnd.ollama.image.model"), errdefs.IsFailedPrecondition, "artifact of the type application/vnd.ollama.image.model"},
		"helm": {artifact("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"), errdefs.IsFailedPrecondition,
			"artifact of the type application/vnd.cncf.helm.config.v1+json"},
		"encrypted": {artifact(types.OCIConfigJSON, types.OCILayer+"+encrypted"), errdefs.IsFailedPrecondition, "its layers are encrypted"},
		"windows":   {server, errdefs.IsNotFound, "it is built for windows/amd64, and this machine is linux/"},
		"s390x":     {foreign, errdefs.IsNotFound, "it is built for linux/s390x, and this machine is linux/"},
		"others": {index(&v1.Platform{OS: "linux", Architecture: "s390x"}, &v1.Platform{OS: "unknown", Architecture: "unknown"}, &v1.Platform{OS: "linux", Architecture: "riscv64"}),
			errdefs.IsNotFound, "it has images for linux/s390x, linux/riscv64 only"},
		"attestations": {index(&v1.Platform{OS: "unknown", Architecture: "unknown"}), errdefs.IsNotFound, "it has no image"},
	} {
		switch what := c.push.(type) {
		case v1.Image:
			h.registry.Push(t, name+":v1", what)
		case v1.ImageIndex:
			h.registry.Push(t, name+":v1", what)
		}
		h.registry.Requests()
		_, err := h.store(nil).Ensure(t.Context(), job.Model{Name: name, Version: "v1"}, nil)
		if !c.class(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if n := testenv.BlobBytes(h.registry.Requests(), ""); n >= 1<<20 {
			t.Errorf("%s: %d bytes of layers were fetched", name, n)
		}
	}

	// A registry that has something else under the name.
	h.registry.Push(t, "other:v1", testenv.Image(t, v1.Config{}, layers...))
	for kind, want := range map[string]string{
		"application/vnd.example.thing+json":      "its manifest is of the type application/vnd.example.thing+json",
		string(types.DockerManifestSchema1Signed): "its manifest has Docker's schema 1",
		string(types.DockerManifestSchema1):       "its manifest has Docker's schema 1",
	} {
		h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
			if strings.Contains(r.URL.Path, "/manifests/") {
				return &testenv.RegistryFault{Body: []byte("{}"), Header: http.Header{"Content-Type": {kind}}}
			}
			return nil
		})
		_, err = h.store(nil).Ensure(t.Context(), job.Model{Name: "other", Version: "v1"}, nil)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", kind, err, want)
		}
	}
}

// An image may leave out its operating system or architecture, or both: Docker runs it as one
// for the machine.
func TestPlatformNotSaid(t *testing.T) {
	own := platforms.DefaultSpec()
	s := platform(platforms.DefaultString())
	for _, c := range []ocispec.Platform{{}, {OS: own.OS}, {Architecture: own.Architecture}, {OS: own.OS, Architecture: own.Architecture}} {
		if err := s.checkPlatform(ocispec.Image{Platform: c}); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []ocispec.Platform{{OS: "plan9"}, {Architecture: "s390x"}, {OS: own.OS, Architecture: "s390x"}} {
		if err := s.checkPlatform(ocispec.Image{Platform: c}); !errdefs.IsNotFound(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
