package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
)

// startUpload starts an upload. It completes it at once if the request mounts a blob that
// exists, or contains the blob with its digest.
func (r *Registry) startUpload(w http.ResponseWriter, req *http.Request, name string) error {
	q := req.URL.Query()
	if mount := q.Get("mount"); mount != "" {
		d, err := parseDigest(mount)
		if err != nil {
			return err
		}
		// All repositories share their blobs.
		if ok, err := r.hasBlob(d); err != nil {
			return err
		} else if ok {
			return blobCreated(w, name, d)
		}
	}
	id := rand.Text()
	f, err := os.OpenFile(r.path("uploads", id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if q.Get("digest") != "" {
		err := r.finishUpload(w, req, name, id)
		if err != nil {
			os.Remove(r.path("uploads", id)) // the client does not know its id
		}
		return err
	}
	return uploadAccepted(w, name, id, 0, http.StatusAccepted)
}

// upload handles the requests for one upload. If a request is interrupted, the part that
// has arrived is kept, and the client can continue from there.
func (r *Registry) upload(w http.ResponseWriter, req *http.Request, name, id string) error {
	if !uploadForm.MatchString(id) {
		return errUploadUnknown
	}
	r.mu.Lock()
	busy := r.writing[id]
	r.writing[id] = true
	r.mu.Unlock()
	if busy {
		return errBusy
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.writing, id)
	}()
	switch req.Method {
	case http.MethodGet:
		info, err := os.Stat(r.path("uploads", id))
		if errors.Is(err, os.ErrNotExist) {
			return errUploadUnknown
		}
		if err != nil {
			return err
		}
		return uploadAccepted(w, name, id, info.Size(), http.StatusNoContent)
	case http.MethodPatch:
		size, err := r.appendUpload(req, id)
		if err != nil {
			return err
		}
		return uploadAccepted(w, name, id, size, http.StatusAccepted)
	case http.MethodPut:
		return r.finishUpload(w, req, name, id)
	case http.MethodDelete:
		err := os.Remove(r.path("uploads", id))
		if errors.Is(err, os.ErrNotExist) {
			return errUploadUnknown
		}
		if err == nil {
			w.WriteHeader(http.StatusNoContent)
		}
		return err
	}
	return errMethod
}

// appendUpload appends the request's body to an upload and returns the upload's size.
func (r *Registry) appendUpload(req *http.Request, id string) (int64, error) {
	f, err := os.OpenFile(r.path("uploads", id), os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errUploadUnknown
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if value := req.Header.Get("Content-Range"); value != "" {
		var first, last int64
		if n, err := fmt.Sscanf(strings.TrimPrefix(value, "bytes "), "%d-%d", &first, &last); err != nil || n != 2 {
			return 0, errUploadInvalid.with("Content-Range %.100q is not FIRST-LAST", value)
		}
		if first != info.Size() {
			return 0, errRange.with("the upload has %d bytes, so the next chunk begins there and not at %d", info.Size(), first)
		}
		if req.ContentLength >= 0 && last-first+1 != req.ContentLength {
			return 0, errUploadInvalid.with("Content-Range %s has not the body's %d bytes", value, req.ContentLength)
		}
	}
	n, err := copyBody(f, req)
	return info.Size() + n, err
}

// copyBody copies the request's body to f. It distinguishes errors of the disk from those
// of the client.
func copyBody(f *os.File, req *http.Request) (int64, error) {
	n, err := io.Copy(f, req.Body)
	var disk *os.PathError
	if err != nil && !errors.As(err, &disk) {
		return n, errUploadInvalid.with("the body ended early: %v", err)
	}
	return n, err
}

// finishUpload appends the body, checks the digest and makes the upload a blob.
func (r *Registry) finishUpload(w http.ResponseWriter, req *http.Request, name, id string) error {
	d, err := parseDigest(req.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	if _, err := r.appendUpload(req, id); err != nil {
		return err
	}
	path := r.path("uploads", id)
	got, err := digestFile(path)
	if err != nil {
		return err
	}
	if got != d {
		os.Remove(path) // continuing the upload could never succeed
		return errDigest.with("the uploaded data has the digest %s, not %s; start the upload again", got, d)
	}
	if err := settle(path, r.blobPath(d)); err != nil {
		return err
	}
	return blobCreated(w, name, d)
}

func digestFile(path string) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest.SHA256.FromReader(f)
}

func uploadAccepted(w http.ResponseWriter, name, id string, size int64, status int) error {
	h := w.Header()
	h.Set("Location", "/v2/"+name+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-UUID", id)
	h.Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	h.Set("Content-Length", "0")
	w.WriteHeader(status)
	return nil
}

func blobCreated(w http.ResponseWriter, name string, d digest.Digest) error {
	h := w.Header()
	h.Set("Location", "/v2/"+name+"/blobs/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}
