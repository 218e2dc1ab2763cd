package registry_test

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/sandbox/registry"
)

// Whatever is asked, in whatever order, is answered without a fault of the
// registry's own, and nothing is written but below its three folders.
func FuzzRequests(f *testing.F) {
	digest := sha("{}")
	f.Add("POST", "/v2/a/blobs/uploads/?digest="+digest, "{}", "", "")
	f.Add("PUT", "/v2/a/manifests/v1", `{"schemaVersion":2,"config":{"digest":"`+digest+`"}}`, "a/b", "")
	f.Add("GET", "/v2/a/manifests/v1", "", "", "")
	f.Add("PATCH", "/v2/a/blobs/uploads/UPLOAD", "x", "", "0-0")
	f.Add("GET", "/v2/../..//x/tags/list?n=1&last=v", "", "", "")
	f.Add("GET", "/v2/_catalog?n=99999999999999999999", "", "", "")
	served := &served{made: f.TempDir()}
	served.open(f, served.made)
	served.ask(f, "POST", "/v2/a/blobs/uploads/?digest="+digest, "{}", nil)
	upload := served.ask(f, "POST", "/v2/a/blobs/uploads/", "", nil).Header().Get("Docker-Upload-UUID")
	served.content = "" // the calls have copies
	copies := f.TempDir()
	f.Fuzz(func(t *testing.T, method, target, body, contentType, contentRange string) {
		target = strings.ReplaceAll(target, "UPLOAD", upload)
		if _, err := url.ParseRequestURI(target); err != nil {
			t.Skip("no HTTP server would pass it on")
		}
		served.renew(t, copies)
		served.ask(t, method, target, body, http.Header{"Content-Type": {contentType}, "Content-Range": {contentRange}})
		served.ask(t, "GET", "/v2/_catalog", "", nil)

		var found []string
		for _, dir := range []string{served.root, filepath.Join(served.root, "registry")} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				found = append(found, e.Name())
			}
		}
		if want := []string{"registry", "blobs", "repositories", "uploads"}; !slices.Equal(found, want) {
			t.Errorf("%s %q leaves %v", method, target, found)
		}
		err := filepath.WalkDir(filepath.Join(served.root, "registry", "blobs"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			if sha(string(content)) != "sha256:"+e.Name() {
				t.Errorf("%s %q leaves a blob %s that is not what it is called", method, target, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// served is a registry that calls share until one changes it: what it fsyncs would be
// nearly all that a call does.
type served struct {
	made    string // a root with a blob and an upload
	root    string
	content string // what is below root before the call
	*registry.Registry
}

func (s *served) open(t testing.TB, root string) {
	t.Helper()
	r, err := registry.Open(registry.Config{Dir: filepath.Join(root, "registry"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.root, s.Registry = root, r
}

// renew makes of the registry a copy of what was made, if it is not as that.
func (s *served) renew(t testing.TB, copies string) {
	t.Helper()
	if s.content != "" && s.content == contentOf(t, s.root) {
		return
	}
	if s.content != "" {
		if err := os.RemoveAll(s.root); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.MkdirTemp(copies, "")
	if err != nil {
		t.Fatal(err)
	}
	s.open(t, root)
	if err := os.RemoveAll(filepath.Join(root, "registry")); err != nil { // with it, the uploads would be removed
		t.Fatal(err)
	}
	if err := os.CopyFS(root, os.DirFS(s.made)); err != nil {
		t.Fatal(err)
	}
	s.content = contentOf(t, root)
}

// contentOf is the names below root, and the files' times.
func contentOf(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b.WriteString(path)
		if !e.IsDir() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %d", info.Size(), info.ModTime().UnixNano())
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (s *served) ask(t testing.TB, method, target, body string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: method, URL: u, Header: header, Body: http.NoBody}
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code >= 500 {
		t.Errorf("%s %q: %d %s", method, target, w.Code, w.Body)
	}
	return w
}
