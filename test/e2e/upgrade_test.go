package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// buildNext builds the daemon of a version after this one, whose ledger has one more
// column, and returns the directory of the programs.
func buildNext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const migration = `-- +goose Up
ALTER TABLE shepherd.jobs ADD COLUMN of_the_next_version bigint NOT NULL DEFAULT 7;
-- +goose Down
ALTER TABLE shepherd.jobs DROP COLUMN of_the_next_version;
`
	write(t, dir+"/next.sql", migration)
	place, err := filepath.Abs("../../ledger/postgres/migrations/00999_next.sql")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {place: dir + "/next.sql"}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/overlay.json", string(overlay))
	for program, flags := range map[string][]string{
		"shepherdd": {"-overlay=" + dir + "/overlay.json", "-ldflags=-X main.version=next"}, "shepherd-shim": nil, "shepherd-runner": nil,
	} {
		build := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", dir+"/", "../../cmd/"+program)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the next %s: %v\n%s", program, err, out)
		}
	}
	return dir
}

// balancer is a load balancer as usual ones are set up: it asks each node's /readyz, sends
// requests to those that are ready, and tries another one where a connection is refused. A
// GET that is answered 502 or 503 it sends to another one, too.
type balancer struct {
	t     *testing.T
	nodes []*backend
	next  atomic.Int64
}

// backend is a node, at a port that it keeps.
type backend struct {
	url   *url.URL
	ready atomic.Bool
}

// check asks the nodes until stop is closed.
func (b *balancer) check(stop <-chan struct{}) {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		for _, n := range b.nodes {
			answer, err := client.Get(n.url.String() + "/readyz")
			if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
				continue // one late answer says nothing, where the machine is busy
			}
			n.ready.Store(err == nil && answer.StatusCode == http.StatusOK)
			if err == nil {
				answer.Body.Close()
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (b *balancer) RoundTrip(r *http.Request) (answer *http.Response, err error) {
	var body []byte
	if r.Body != nil {
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	transport := &http.Transport{DisableKeepAlives: true}
	for range 100 {
		n := b.nodes[int(b.next.Add(1))%len(b.nodes)]
		if !n.ready.Load() {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		to := r.Clone(r.Context())
		to.URL.Scheme, to.URL.Host, to.Body = n.url.Scheme, n.url.Host, io.NopCloser(strings.NewReader(string(body)))
		answer, err = transport.RoundTrip(to)
		var refused *net.OpError
		switch {
		case errors.As(err, &refused) && refused.Op == "dial":
			continue
		case err == nil && r.Method == http.MethodGet && (answer.StatusCode == http.StatusServiceUnavailable || answer.StatusCode == http.StatusBadGateway):
			answer.Body.Close()
			continue
		}
		return answer, err
	}
	return nil, errors.Join(errors.New("no node is ready"), err)
}

// All nodes are upgraded, one after the other, while jobs run and clients submit through a
// load balancer: to a version that changes the ledger's tables, beside which the node of
// the version before goes on. No request is refused, and each job ends once.
func TestRollingUpgrade(t *testing.T) {
	next := buildNext(t)
	fleet, _ := newFleet(t, "a", "b")
	b := &balancer{t: t}
	for _, name := range []string{"a", "b"} {
		w := fleet[name]
		at := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
		w.edit("  port: 0\nsheep:", "  port: "+strings.TrimPrefix(at, "127.0.0.1:")+"\nsheep:")
		if name == "a" { // as in a service; the other is stopped with its sheep
			w.edit("api:\n", "on_exit: leave\napi:\n")
		}
		w.start()
		b.nodes = append(b.nodes, &backend{url: &url.URL{Scheme: "http", Host: at}})
	}

	stop := make(chan struct{})
	var checks sync.WaitGroup
	checks.Go(func() { b.check(stop) })
	front := httptest.NewServer(&httputil.ReverseProxy{Transport: b, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(b.nodes[0].url) }})
	defer func() {
		front.Close()
		close(stop)
		checks.Wait()
	}()

	// Clients submit jobs and wait for them.
	var submitted, ended atomic.Int64
	var clients sync.WaitGroup
	enough := make(chan struct{})
	for c := range 3 {
		clients.Go(func() {
			client := http.Client{Timeout: deadline}
			for i := 0; ; i++ {
				select {
				case <-enough:
					return
				default:
				}
				id := fmt.Sprintf("job-%d-%d", c, i)
				text := fmt.Sprintf(`{"job_id": %q, "model": {"name": "echo", "version": "v1"}, "payload": "print %s"}`, id, id)
				answer, err := client.Post(front.URL+"/start-job", "application/json", strings.NewReader(text))
				if err != nil {
					t.Errorf("submit %s: %v", id, err)
					return
				}
				said, _ := io.ReadAll(answer.Body)
				answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					t.Errorf("submit %s: %s %s", id, answer.Status, said)
					return
				}
				submitted.Add(1)
				for done := false; !done; {
					answer, err := client.Get(front.URL + "/jobs/" + id + "/wait_ready?timeout=5")
					if err != nil {
						t.Errorf("wait for %s: %v", id, err)
						return
					}
					said, _ := io.ReadAll(answer.Body)
					answer.Body.Close()
					var status struct{ Status string }
					if err := json.Unmarshal(said, &status); err != nil || answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusRequestTimeout && answer.StatusCode != http.StatusAccepted {
						t.Errorf("wait for %s: %s %s", id, answer.Status, said)
						return
					}
					done = status.Status == "done"
					if status.Status == "failed" || status.Status == "cancelled" {
						t.Errorf("%s is %s", id, said)
						return
					}
				}
				ended.Add(1)
			}
		})
	}
	more := func(what string) {
		t.Helper()
		mark := ended.Load()
		fleet["a"].eventually(what, func() bool { return ended.Load() >= mark+5 || t.Failed() })
	}
	more("jobs end")
	for _, name := range []string{"a", "b"} {
		w := fleet[name]
		w.bin = next
		if code := w.stop(); code != 0 {
			t.Errorf("node %s ended with %d", name, code)
		}
		more("jobs end without node " + name)
		w.start()
		more("jobs end with the next node " + name)
	}
	close(enough)
	clients.Wait()

	for name, w := range fleet {
		if code, text := w.request("GET", "/version", ""); code != 200 || !strings.Contains(text, `"next"`) {
			t.Errorf("node %s is of version %s", name, text)
		}
	}
	a := fleet["a"]
	code, text := a.request("GET", "/jobs?limit=1000", "")
	var list struct {
		Jobs []struct {
			JobID  string `json:"job_id"`
			Status string
		}
	}
	if err := json.Unmarshal([]byte(text), &list); code != 200 || err != nil || len(list.Jobs) != int(submitted.Load()) {
		t.Fatalf("%d jobs are known, %d were submitted: %d %v", len(list.Jobs), submitted.Load(), code, err)
	}
	ran := map[string]int{}
	for _, j := range list.Jobs {
		ends := causes(t, a, j.JobID)
		last := ends[len(ends)-1]
		if j.Status != "done" || strings.Count(strings.Join(ends, " "), "done") != 1 || !strings.HasSuffix(last, " done") {
			t.Errorf("%s is %s after %v", j.JobID, j.Status, ends)
		}
		ran[last]++
	}
	if len(ran) != 2 {
		t.Errorf("jobs ran on %v", ran)
	}
	t.Logf("%d jobs: %v", submitted.Load(), ran)
	a.edit("on_exit: leave\n", "")
	a.kill() // what it leaves is cleaned up by the next
}
