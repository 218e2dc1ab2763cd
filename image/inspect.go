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

// platform is this machine's OS and architecture, as in linux/amd64.
type platform string

// checkTarget returns an error if the descriptor that a reference resolves to is
// neither an image manifest nor an index.
func checkTarget(desc ocispec.Descriptor) error {
	switch {
	case images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType):
		return nil
	case strings.HasPrefix(desc.MediaType, "application/vnd.docker.distribution.manifest.v1"): // unsigned; signed ones are refused by containerd's resolver
		return schemaOne()
	}
	return failf(errdefs.ErrFailedPrecondition, "it is not a container image: its manifest is of the type %s", printable(desc.MediaType))
}

func schemaOne() *failure {
	return failf(errdefs.ErrFailedPrecondition, "its manifest has Docker's schema 1, which is not supported any more; build and push it again")
}

// checkManifest returns an error if a manifest is not that of a container image:
// registries store models, charts and signatures with manifests, too.
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
	return failf(errdefs.ErrFailedPrecondition, "it is not a container image but an artifact of the type %s, which contains no program: use an image that contains one, and fetch or mount the artifact in it", printable(kind))
}

// splitLayers divides the children of an image's manifest into its configuration and
// its layers.
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

// checkConfig fetches an image's configuration with the pull's handler h, and returns
// an error if the image is not for this machine's platform.
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

// checkPlatform returns an error if an image is not for this machine's platform.
func (s platform) checkPlatform(config ocispec.Image) error {
	built, own := config.Platform, platforms.DefaultSpec()
	if built.OS == "" { // some builders do not set it, or the architecture
		built.OS = own.OS
	}
	if built.Architecture == "" {
		built.Architecture, built.Variant = own.Architecture, own.Variant
	}
	built = platforms.Normalize(built)
	if !platforms.Default().Match(built) {
		return failf(errdefs.ErrNotFound, "it is built for %s, and this machine is %s; build it for this platform", printable(platforms.Format(built)), s)
	}
	return nil
}

// noPlatform returns the error for an index without an image for this platform.
func (s *puller) noPlatform(ctx context.Context, desc ocispec.Descriptor) error {
	data, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		data = nil
	}
	return s.platform.explainIndex(data)
}

// explainIndex returns an error that lists the platforms for which an index has
// images. data is nil if the index could not be read.
func (s platform) explainIndex(data []byte) error {
	var index ocispec.Index
	if json.Unmarshal(data, &index) != nil {
		return failf(errdefs.ErrNotFound, "it has no variant for this machine (%s); build it for this platform", s)
	}
	var found []string
	for _, m := range index.Manifests {
		// Attestations are listed in indexes as images for the platform "unknown".
		if m.Platform != nil && m.Platform.OS != "unknown" && m.Platform.OS != "" && len(found) < 10 {
			found = append(found, printable(platforms.Format(*m.Platform)))
		}
	}
	has := "no image"
	if len(found) > 0 {
		has = "images for " + strings.Join(found, ", ") + " only"
	}
	return failf(errdefs.ErrNotFound, "it has no variant for this machine (%s): it has %s; build it for this platform", s, has)
}

// printable escapes and shortens a string of a registry's document for a message.
func printable(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Trim(fmt.Sprintf("%.100q", s), `"`)
}
