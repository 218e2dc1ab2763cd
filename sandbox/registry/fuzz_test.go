package registry_test

import (
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
	f.Fuzz(func(t *testing.T, method, target, body, contentType, contentRange string) {
		root := t.TempDir()
		r, err := registry.Open(registry.Config{Dir: filepath.Join(root, "registry"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		serve := func(method, target, body string) *httptest.ResponseRecorder {
			u, err := url.ParseRequestURI(target)
			if err != nil {
				t.Skip("no HTTP server would pass it on")
			}
			req := &http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody}
			req.Header.Set("Content-Type", contentType)
			req.Header.Set("Content-Range", contentRange)
			if body != "" {
				req = httptest.NewRequest("PUT", "/", strings.NewReader(body))
				req.Method, req.URL = method, u
			}
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			if w.Code >= 500 {
				t.Errorf("%s %q: %d %s", method, target, w.Code, w.Body)
			}
			return w
		}
		serve("POST", "/v2/a/blobs/uploads/?digest="+digest, "{}")
		upload := serve("POST", "/v2/a/blobs/uploads/", "").Header().Get("Docker-Upload-UUID")
		serve(method, strings.ReplaceAll(target, "UPLOAD", upload), body)
		serve("GET", "/v2/_catalog", "")

		var found []string
		for _, dir := range []string{root, filepath.Join(root, "registry")} {
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
		err = filepath.WalkDir(filepath.Join(root, "registry", "blobs"), func(path string, e fs.DirEntry, err error) error {
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
