package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// manifestMax is the size in bytes that the specification requires registries to accept.
const manifestMax = 4 << 20

// manifest is the part of image manifests and indexes, OCI's and Docker's, that refers to
// other blobs and manifests.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
}

type descriptor struct {
	Digest string   `json:"digest"`
	URLs   []string `json:"urls"` // of a blob that is stored elsewhere
}

// putManifest stores a manifest. Everything that it refers to must exist.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, name, reference string) error {
	byDigest, err := parseDigest(reference)
	isTag := tagForm.MatchString(reference)
	if err != nil && !isTag {
		return errTag.with("%.150q is neither a tag nor a sha256 digest", reference)
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, manifestMax+1))
	if err != nil {
		return errManifestInvalid.with("the body ended early: %v", err)
	}
	if len(body) > manifestMax {
		return errManifestSize
	}
	d := digest.FromBytes(body)
	if !isTag && d != byDigest {
		return errDigest.with("the manifest is %s, not %s", d, byDigest)
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return errManifestInvalid.with("not a manifest: %v", err)
	}
	mediaType, err := manifestType(req.Header.Get("Content-Type"), m)
	if err != nil {
		return err
	}
	if err := r.checkParts(name, m); err != nil {
		return err
	}
	// The tag is written last, so that it never refers to a missing manifest.
	if err := r.write(r.blobPath(d), body); err != nil {
		return err
	}
	if err := r.write(r.manifestPath(name, d), []byte(mediaType)); err != nil {
		return err
	}
	if isTag {
		if err := r.write(r.tagPath(name, reference), []byte(d)); err != nil {
			return err
		}
	}
	h := w.Header()
	h.Set("Location", "/v2/"+name+"/manifests/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// manifestType returns the media type of a manifest.
func manifestType(contentType string, m manifest) (string, error) {
	if m.SchemaVersion != 2 {
		return "", errManifestInvalid.with("schemaVersion %d is not supported, only 2", m.SchemaVersion)
	}
	declared, _, err := mime.ParseMediaType(contentType)
	switch {
	case contentType == "" && m.MediaType != "":
		return m.MediaType, nil
	case err != nil:
		return "", errManifestInvalid.with("Content-Type %.100q is not a media type", contentType)
	case m.MediaType != "" && m.MediaType != declared:
		return "", errManifestInvalid.with("Content-Type %.100q is not the manifest's mediaType %.100q", declared, m.MediaType)
	}
	return declared, nil
}

// checkParts returns an error if something that a manifest refers to is missing.
func (r *Registry) checkParts(name string, m manifest) error {
	blobs := m.Layers
	if m.Config != nil {
		blobs = append([]descriptor{*m.Config}, blobs...)
	}
	for _, b := range blobs {
		d, err := parseDigest(b.Digest)
		if err != nil {
			return err
		}
		if len(b.URLs) > 0 {
			continue
		}
		if ok, err := r.hasBlob(d); err != nil {
			return err
		} else if !ok {
			return errManifestBlob.with("the manifest needs blob %s, which was not uploaded", d)
		}
	}
	for _, part := range m.Manifests {
		d, err := parseDigest(part.Digest)
		if err != nil {
			return err
		}
		_, err = os.Stat(r.manifestPath(name, d))
		if errors.Is(err, os.ErrNotExist) {
			return errManifestBlob.with("the index needs manifest %s, which was not uploaded", d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// getManifest responds with a manifest, by tag or by digest.
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, name, reference string) error {
	d, err := r.resolve(name, reference)
	if err != nil {
		return err
	}
	mediaType, err := os.ReadFile(r.manifestPath(name, d))
	if errors.Is(err, os.ErrNotExist) {
		return errManifestUnknown.with("no manifest %s in %s", d, name)
	}
	if err != nil {
		return err
	}
	body, err := os.ReadFile(r.blobPath(d))
	if err != nil {
		return fmt.Errorf("read manifest %s of %s: %w", d, name, err)
	}
	h := w.Header()
	h.Set("Content-Type", string(mediaType))
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
	return nil
}

// resolve returns the digest of a tag or digest in a repository.
func (r *Registry) resolve(name, reference string) (digest.Digest, error) {
	if d, err := parseDigest(reference); err == nil {
		return d, nil
	}
	if !tagForm.MatchString(reference) {
		return "", errManifestUnknown.with("%.150q is neither a tag nor a sha256 digest", reference)
	}
	content, err := os.ReadFile(r.tagPath(name, reference))
	if errors.Is(err, os.ErrNotExist) {
		return "", errManifestUnknown.with("no %s:%s in this registry", name, reference)
	}
	if err != nil {
		return "", err
	}
	d, err := digest.Parse(string(content))
	if err != nil {
		return "", fmt.Errorf("tag %s:%s: %w", name, reference, err)
	}
	return d, nil
}

func (r *Registry) manifestPath(name string, d digest.Digest) string {
	return r.path("repositories", filepath.FromSlash(name), "_manifests", d.Algorithm().String(), d.Encoded())
}

func (r *Registry) tagPath(name, tag string) string {
	return r.path("repositories", filepath.FromSlash(name), "_tags", tag)
}
