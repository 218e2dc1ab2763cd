package remote

import (
	"errors"
	"net/http"
	"net/http/httptest"
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

	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, at := range []string{server.URL, server.URL + "/", "unix://" + path} {
		t.Setenv(EnvServer, at)
		t.Setenv(EnvToken, "from-the-environment")
		for _, c := range []struct {
			asks Target
			want string
		}{
			{Target{server: at, token: "t1"}, "shown Bearer t1"},
			{Target{server: at}, "shown Bearer from-the-environment"},
			{Target{}, "shown Bearer from-the-environment"},
		} {
			c.asks.config.DialSocket = access.Dial
			daemon, err := c.asks.Open()
			if err != nil {
				t.Fatal(err)
			}
			if err := daemon.Call(t.Context(), http.MethodGet, "/", nil, nil); err == nil || err.Error() != c.want {
				t.Errorf("%s: %v, want %s", at, err, c.want)
			}
			if err := daemon.Call(t.Context(), http.MethodGet, "/elsewhere", nil, nil); err == nil || !strings.Contains(err.Error(), "is it a shepherd") {
				t.Errorf("%s: %v", at, err)
			}
			if err := daemon.Call(t.Context(), http.MethodGet, "/moved", nil, nil); err == nil || !strings.Contains(err.Error(), "302") {
				t.Errorf("%s: followed to where the token is not for: %v", at, err)
			}
			daemon.CloseIdle()
		}
	}
}

func TestTargetWithoutDaemon(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv(EnvServer, "")
	t.Setenv(EnvServerOld, "")
	daemon, err := (&Target{server: "unix://" + filepath.Join(t.TempDir(), "none.sock")}).Open()
	if err != nil {
		t.Fatal(err)
	}
	err = Hint(daemon.Call(t.Context(), http.MethodGet, "/", nil, nil))
	if err == nil || !strings.Contains(err.Error(), "no daemon answers at unix://") || ExitCode(err) != ExitUnreachable {
		t.Errorf("got %v", err)
	}
	for _, address := range []string{"localhost:5000", "ftp://x", "http://", "unix://x", "unix:", "http://user:password@host", "http://x?q"} {
		if _, err := (&Target{server: address}).Open(); ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v", address, err)
		}
	}
	for name, asks := range map[string]*Target{"both": {File: "x", server: "http://y"}, "nothing": {}, "unknown context": {context: "z"}} {
		if _, err := asks.Open(); ExitCode(err) != ExitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	located := errors.New("not running")
	asks := &Target{File: "x", config: Config{Locate: func(string) (string, error) { return "", located }}}
	if _, err := asks.Open(); !errors.Is(err, located) {
		t.Errorf("a configuration whose daemon is not up: %v", err)
	}
}

// The daemons that login keeps are listed in every form, without their tokens.
func TestListContexts(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	kept := contexts{Current: "b", Known: map[string]place{"a": {Server: "http://a:5000"}, "b": {Server: "http://b:5000", Token: "secret"}}}
	if err := kept.write(); err != nil {
		t.Fatal(err)
	}
	for form, want := range map[string]string{
		"table": "USED  NAME  SERVER         TOKEN\n      a     http://a:5000  no\n*     b     http://b:5000  yes\n",
		"name":  "a\nb\n",
		"jsonl": `{"name":"a","server":"http://a:5000","used":false,"token":false}` + "\n" + `{"name":"b","server":"http://b:5000","used":true,"token":true}` + "\n",
	} {
		var out strings.Builder
		cmd := contextsCommand(Config{})
		cmd.SetArgs([]string{"-o", form})
		cmd.SetOut(&out)
		if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v", form, out.String(), err)
		}
	}
}
