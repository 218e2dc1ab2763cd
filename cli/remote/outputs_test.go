package remote

import (
	"archive/tar"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestResultIsWhole has an archive without one of the listed outputs: what was fetched is
// not taken for all of them.
func TestResultIsWhole(t *testing.T) {
	missing := ""
	json := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, text)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jobs/j", json(`{"job_id": "j", "status": "done", "model": {"name": "m", "version": "v"}}`))
	mux.HandleFunc("GET /jobs/j/outputs", json(`{"bytes": 2, "files": [{"name": "a/b", "size": 1, "modified_at": null}, {"name": "c", "size": 1, "modified_at": null}]}`))
	mux.HandleFunc("GET /jobs/j/outputs.tar", func(w http.ResponseWriter, _ *http.Request) {
		archive := tar.NewWriter(w)
		for _, name := range []string{"a/b", "c"} {
			if name == missing {
				continue
			}
			if err := archive.WriteHeader(&tar.Header{Name: name, Size: 1, Mode: 0o644}); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(archive, "x")
		}
		if err := archive.Close(); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, missing = range []string{"", "a/b", "c"} {
		cmd := result(NewTarget(Config{}))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		t.Setenv(EnvServer, server.URL)
		cmd.SetArgs([]string{"j", "-o", t.TempDir()})
		err := cmd.ExecuteContext(t.Context())
		if (err == nil) != (missing == "") || err != nil && !strings.Contains(err.Error(), missing) {
			t.Errorf("without %q: %v", missing, err)
		}
	}
}
