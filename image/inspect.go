package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is what images for this machine are built for.
type platform string

// checkTarget refuses what a registry has under an image's name and is neither an
// image's manifest nor an index.
func checkTarget(desc ocispec.Descriptor) error {
	switch {
	case images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType):
		return nil
	case strings.HasPrefix(desc.MediaType, "application/vnd.docker.distribution.manifest.v1"): // unsigned; signed ones are refused by containerd's resolver
		return schemaOne()
	}
	return failf(errdefs.ErrFailedPrecondition, "it is not a container image: its manifest is of the type %s", shown(desc.MediaType))
}

func schemaOne() *failure {
	return failf(errdefs.ErrFailedPrecondition, "it is an image of Docker's schema 1, which is not supported any more; build and push it again")
}

// checkManifest refuses a manifest of something else than a container image:
// registries keep models, charts and signatures in the same form.
func (s *puller) checkManifest(ctx context.Context, desc ocispec.Descriptor) error {
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return err
	}
	return checkManifest(data)
}

func checkManifest(data []byte) error {
	var manifest struct {
		ArtifactType string               `json:"artifactType"`
		Config       ocispec.Descriptor   `json:"config"`
		Layers       []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return failf(errdefs.ErrFailedPrecondition, "its manifest cannot be read (%v); push it again", err)
	}
	kind := manifest.ArtifactType
	if kind == "" {
		kind = manifest.Config.MediaType
	}
	if !images.IsConfigType(manifest.Config.MediaType) {
		return notAnImage(kind)
	}
	for _, l := range manifest.Layers {
		if !images.IsLayerType(l.MediaType) {
			return notAnImage(l.MediaType)
		}
		if strings.HasSuffix(l.MediaType, "+encrypted") {
			return failf(errdefs.ErrFailedPrecondition, "its layers are encrypted, and shepherd has no keys: push it without encryption")
		}
	}
	return nil
}

func notAnImage(kind string) error {
	return failf(errdefs.ErrFailedPrecondition, "it is not a container image but an artifact of the type %s, which holds no program: name an image that does, and fetch or mount the artifact in it", shown(kind))
}

// splitLayers takes the children of an image's manifest apart.
func splitLayers(children []ocispec.Descriptor) (config ocispec.Descriptor, layers []ocispec.Descriptor) {
	for _, c := range children {
		switch {
		case images.IsLayerType(c.MediaType):
			layers = append(layers, c)
		case images.IsConfigType(c.MediaType):
			config = c
		}
	}
	return config, layers
}

// checkConfig fetches an image's configuration by h, which is the pull's, and
// refuses one for another machine, or with other layers than the manifest has.
func (s *puller) checkConfig(ctx context.Context, h images.Handler, desc ocispec.Descriptor) error {
	if desc.Digest == "" {
		return nil // refused by checkManifest
	}
	if desc.Size > maxDocument {
		return failf(errdefs.ErrFailedPrecondition, "its configuration has %d bytes, at most %d are read", desc.Size, maxDocument)
	}
	if _, err := h.Handle(ctx, desc); err != nil {
		return err
	}
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return err
	}
	config, err := parseConfig(data)
	if err != nil {
		return err
	}
	return s.platform.checkPlatform(config)
}

// parseConfig reads an image's configuration.
func parseConfig(data []byte) (ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return config, failf(errdefs.ErrFailedPrecondition, "its configuration cannot be read (%v); build and push it again", err)
	}
	return config, nil
}

// checkPlatform refuses an image for another machine.
func (s platform) checkPlatform(config ocispec.Image) error {
	if config.OS == "" && config.Architecture == "" {
		return nil // it does not say, as some builders' do not
	}
	built := platforms.Normalize(config.Platform)
	if !platforms.Default().Match(built) {
		return failf(errdefs.ErrNotFound, "it is built for %s, and this machine is %s; build it for this platform", shown(platforms.Format(built)), s)
	}
	return nil
}

// noPlatform says for which platforms an index has images.
func (s *puller) noPlatform(ctx context.Context, desc ocispec.Descriptor) error {
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		data = nil
	}
	return s.platform.explainIndex(data)
}

// explainIndex says for which platforms an index has images; nil is one that cannot
// be read.
func (s platform) explainIndex(data []byte) error {
	var index ocispec.Index
	if json.Unmarshal(data, &index) != nil {
		return failf(errdefs.ErrNotFound, "it has no variant for this machine (%s); build it for this platform", s)
	}
	var found []string
	for _, m := range index.Manifests {
		// Attestations lie in indexes as images for a platform "unknown".
		if m.Platform != nil && m.Platform.OS != "unknown" && m.Platform.OS != "" && len(found) < 10 {
			found = append(found, shown(platforms.Format(*m.Platform)))
		}
	}
	has := "no image"
	if len(found) > 0 {
		has = "images for " + strings.Join(found, ", ") + " alone"
	}
	return failf(errdefs.ErrNotFound, "it has no variant for this machine (%s): it has %s; build it for this platform", s, has)
}

// shown is a word out of a registry's document, harmless to print.
func shown(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Trim(fmt.Sprintf("%.100q", s), `"`)
}
