package cli

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
)

// spoken answers with the token that it was shown, in an error's form.
func spoken() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"message": "shown ` + r.Header.Get("Authorization") + `"}`))
	})
}

func TestClientByEachWay(t *testing.T) {
	server := httptest.NewServer(spoken())
	defer server.Close()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := access.Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	local := &http.Server{Handler: spoken()}
	served := make(chan error)
	go func() { served <- local.Serve(l) }()
	defer func() { local.Close(); <-served }()

	for _, at := range []string{server.URL, server.URL + "/", "unix://" + path} {
		t.Setenv(envAPI, at)
		t.Setenv(envToken, "from-the-environment")
		for _, c := range []struct {
			asks target
			want string
		}{
			{target{api: at, token: "t1"}, "shown Bearer t1"},
			{target{api: at}, "shown Bearer from-the-environment"},
			{target{}, "shown Bearer from-the-environment"},
		} {
			daemon, err := c.asks.find()
			if err != nil {
				t.Fatal(err)
			}
			if err := daemon.ask(t.Context(), http.MethodGet, "/", nil, nil); err == nil || err.Error() != c.want {
				t.Errorf("%s: %v, want %s", at, err, c.want)
			}
			if err := daemon.ask(t.Context(), http.MethodGet, "/elsewhere", nil, nil); err == nil || !strings.Contains(err.Error(), "is it a shepherd") {
				t.Errorf("%s: %v", at, err)
			}
			if err := daemon.ask(t.Context(), http.MethodGet, "/moved", nil, nil); err == nil || !strings.Contains(err.Error(), "302") {
				t.Errorf("%s: followed to where the token is not for: %v", at, err)
			}
			daemon.close()
		}
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	daemon, err := newClient("unix://"+filepath.Join(t.TempDir(), "none.sock"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.ask(t.Context(), http.MethodGet, "/", nil, nil); err == nil || !strings.Contains(err.Error(), "no daemon answers at unix://") {
		t.Errorf("got %v", err)
	}
	var usage *usageError
	for _, address := range []string{"localhost:5000", "", "ftp://x", "http://", "unix://x", "unix:", "http://user:password@host"} {
		if _, err := newClient(address, ""); !errors.As(err, &usage) {
			t.Errorf("%q: %v", address, err)
		}
	}
	t.Setenv(envAPI, "")
	if _, err := (&target{file: "x", api: "http://y"}).find(); !errors.As(err, &usage) {
		t.Errorf("both: %v", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yml")
	text := "data_root: " + dir + "/data\nstate_dir: " + dir + "/state\nsheep: {}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&target{file: file}).find(); !errors.Is(err, errNoDaemon) {
		t.Errorf("a configuration whose daemon is not up: %v", err)
	}
}
