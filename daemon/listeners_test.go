package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/claims"
)

// get is the status and the body of a GET.
func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	response, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestListeners(t *testing.T) {
	claims.Hold(t, "L2")
	dir := t.TempDir()
	cfg := &config.Config{StateDir: dir, API: config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "api.sock")}}
	cfg.Storage.SecretKey = config.NewSecret("hunter2")
	l, err := openListeners(cfg, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api" || r.URL.Path == "/files/a//../b" { // as it was sent
			io.WriteString(w, "the API")
			return
		}
		http.NotFound(w, r)
	})
	l.serve(context.Background(), api, withDebug(api, func() *config.Config { return cfg }, l.local), slog.New(slog.DiscardHandler))

	address, err := Address(dir)
	if err != nil {
		t.Fatal(err)
	}
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok {
		t.Fatalf("the address is %s", address)
	}
	socket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return access.Dial(ctx, path)
	}}}
	defer socket.CloseIdleConnections()
	network := &http.Client{Transport: &http.Transport{}}
	defer network.CloseIdleConnections()
	for path, want := range map[string]string{
		"/api": "the API", "/files/a%2F%2F..%2Fb": "the API", "/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/config": "state_dir: " + dir,
		"/debug/build": "path\t", "/debug/pprof/cmdline": os.Args[0], "/debug/pprof/symbol": "num_symbols",
	} {
		status, body := get(t, socket, "http://shepherd"+path)
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s on the socket: %d %.100s", path, status, body)
		}
		if strings.Contains(body, "hunter2") {
			t.Errorf("%s shows a secret", path)
		}
		if status, _ := get(t, network, l.url()+path); (status == http.StatusOK) != !strings.HasPrefix(path, "/debug/") {
			t.Errorf("%s on the network: %d", path, status)
		}
	}
	if err := l.shutdown(t.Context(), 0); err != nil {
		t.Error(err)
	}
	l.close()
	for _, name := range []string{"api.sock", "api"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestListenersThatDoNotOpen(t *testing.T) {
	dir := t.TempDir()
	first, err := openListeners(&config.Config{StateDir: dir, API: config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "api.sock")}}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	for name, c := range map[string]struct {
		api  config.API
		want string
	}{
		"the socket is another's": {config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "api.sock")}, "api.socket"},
		"no such group":           {config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "b.sock"), SocketGroup: "no-such-group"}, "groupadd"},
	} {
		if _, err := openListeners(&config.Config{StateDir: t.TempDir(), API: c.api}, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
