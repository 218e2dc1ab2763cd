package remote

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// What sheep are told goes to the daemon, one sheep after another until one cannot.
func TestSheepOrders(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "/wolf/") {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message": "Unknown sheep id `+"`wolf`"+`"}`)
			return
		}
		if strings.Contains(r.URL.Path, "/drained/") {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"message": "Sheep `+"`drained`"+` is drained already"}`)
			return
		}
		_, _ = io.WriteString(w, `{"success": true}`)
	}))
	defer server.Close()
	for _, c := range []struct {
		args, says string
		asked      []string
		code       int
		fails      string
	}{
		{args: "drain a node/b", says: "Sheep a takes no more jobs.\nSheep node/b takes no more jobs.\n", asked: []string{"POST /sheep/a/drain", "POST /sheep/node%2Fb/drain"}},
		{args: "resume a", says: "Sheep a takes jobs.\n", asked: []string{"POST /sheep/a/resume"}},
		{args: "restart a", says: "Sheep a has ended its runner and works again.\n", asked: []string{"POST /sheep/a/restart?drain="}},
		{args: "restart a --drain-timeout 90s", says: "Sheep a has ended its runner and works again.\n", asked: []string{"POST /sheep/a/restart?drain=1m30s"}},
		{args: "load a m:v1", says: "Sheep a has loaded m:v1.\n", asked: []string{`POST /sheep/a/load {"model":{"name":"m","version":"v1"}}`}},
		{args: "drain a wolf b", says: "Sheep a takes no more jobs.\n", asked: []string{"POST /sheep/a/drain", "POST /sheep/wolf/drain"}, code: ExitNotFound, fails: "Unknown sheep id `wolf`"},
		{args: "drain drained", asked: []string{"POST /sheep/drained/drain"}, code: ExitConflict, fails: "is drained already"},
		{args: "drain", code: ExitUsage, fails: "the name of a sheep is needed"},
		{args: "load a", code: ExitUsage, fails: "load SHEEP NAME:VERSION"},
	} {
		t.Run(c.args, func(t *testing.T) {
			asked = nil
			var out bytes.Buffer
			cmd := sheepCommand(Config{})
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(append(strings.Fields(c.args), "--server", server.URL))
			cmd.SetOut(&out)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if got := ExitCode(err); got != c.code || c.fails != "" && !strings.Contains(fmt.Sprint(err), c.fails) {
				t.Errorf("ended with %d, %v", got, err)
			}
			if out.String() != c.says || !slices.Equal(asked, c.asked) {
				t.Errorf("said %q and asked %q", out.String(), asked)
			}
		})
	}
}

// Shells are given the daemon's sheep and, for load, its models.
func TestCompleteOrders(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, map[string]string{
			"/sheep":  `{"sheep": [{"name": "a"}, {"name": "b"}]}`,
			"/jobs":   `{"jobs": [{"job_id": "j", "model": {"name": "m", "version": "v1"}}], "next": null}`,
			"/models": `{"models": [{"name": "kept", "version": "v2"}]}`,
		}[r.URL.Path])
	}))
	defer server.Close()
	for args, want := range map[string][]string{"drain a ": {"b"}, "load ": {"a", "b"}, "load a ": {"kept:v2", "m:v1"}, "load a m:v1 ": nil} {
		fields := strings.Fields(args)
		target := NewTarget(Config{})
		target.server = server.URL
		for _, order := range SheepOrders(target) {
			if order.Name() != fields[0] {
				continue
			}
			if got, _ := order.ValidArgsFunction(order, fields[1:], ""); !slices.Equal(got, want) {
				t.Errorf("%q is completed with %q, want %q", args, got, want)
			}
		}
	}
}
