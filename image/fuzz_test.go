package image

import (
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/identity"
)

// harmless checks an error that a registry's document led to: it is one line for
// people, of a bounded length.
func harmless(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\r\x1b\x00") || len(text) > 4<<10 {
		t.Errorf("the error is %.4100q", text)
	}
}

// FuzzManifest: whatever a registry has for a manifest or an index is taken, or
// refused in a line.
func FuzzManifest(f *testing.F) {
	for _, text := range []string{
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip"}]}`,
		`{"artifactType":"application/vnd.cncf.model.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json"}}`,
		`{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"},"layers":[{"mediaType":"text/plain\u001b[31m"}]}`,
		`{"manifests":[{"platform":{"os":"linux","architecture":"s390x"}},{"platform":{"os":"unknown","architecture":"unknown"}}]}`,
		`{"manifests":[{"platform":null}]}`, `{}`, `[]`, ``,
	} {
		f.Add([]byte(text))
	}
	s := platform("linux/amd64")
	f.Fuzz(func(t *testing.T, data []byte) {
		harmless(t, checkManifest(data))
		if err := s.explainIndex(data); err == nil {
			t.Error("an index without an image for this machine is well")
		} else {
			harmless(t, err)
		}
	})
}

// FuzzConfig: so is whatever it has for an image's configuration.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		`{"os":"linux","architecture":"amd64","config":{"Env":["A"],"Labels":{"shepherd.command":"x"}},"rootfs":{"type":"layers","diff_ids":["sha256:0"]}}`,
		`{"os":"windows","architecture":"arm64\n","variant":"v8"}`, `{"os":"linux"}`, `{"architecture":"x86_64"}`, `{"rootfs":{"diff_ids":[""]}}`, `null`, `[]`,
	} {
		f.Add([]byte(text))
	}
	s := platform("linux/amd64")
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := parseConfig(data)
		if err != nil {
			harmless(t, err)
			return
		}
		harmless(t, s.checkPlatform(config))
		if id := identity.ChainID(config.RootFS.DiffIDs); len(config.RootFS.DiffIDs) > 1 && id.Validate() != nil {
			t.Errorf("the chain's id is %q", id)
		}
	})
}
