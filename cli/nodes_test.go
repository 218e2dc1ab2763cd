package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// hang is the time limit of what takes far less.
const hang = 2 * time.Minute

// Nodes are listed, drained, and forgotten when they are gone.
func TestNodes(t *testing.T) {
	server := postgrestest.New(t)
	url := server.URL("postgres")
	p := newPatient(t, "ledger: {url: \""+url+"\"}\n")
	file := newPatient(t, "")
	if _, err := call("nodes", "ls", "-c", file.config); err == nil || !strings.Contains(err.Error(), "SQLite") {
		t.Errorf("with a SQLite file: %v", err)
	}
	if _, err := call("nodes", "ls", "-c", p.config); !errdefs.IsNotFound(err) {
		t.Errorf("without tables: %v", err)
	}
	ledgers, leases := map[string]*postgres.Ledger{}, map[string]ledger.Lease{}
	for _, name := range []string{"a", "b"} {
		l, err := postgres.Open(t.Context(), postgres.Config{URL: url, Lease: time.Hour, RetryFor: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if leases[name], err = l.Join(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		ledgers[name] = l
	}
	a := ledgers["a"]
	about := postgres.About{Labels: job.Labels{"region": "eu", "gpu": "a100"}, Address: "http://a:5000", Version: "v1", Sheep: []postgres.Sheep{{Name: "s1", Type: "bare", Model: job.Model{Name: "m", Version: "2"}}, {Name: "s2", Type: "bare"}}}
	if err := a.Announce(t.Context(), "a", about); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Create(t.Context(), job.Record{ID: "x", Model: job.Model{Name: "m"}}); err != nil {
		t.Fatal(err)
	}
	if c, err := a.Claim(t.Context(), ledger.Slot{Node: "a", Sheep: "s1"}); err != nil || c == nil {
		t.Fatalf("Claim = %v, %v", c, err)
	}
	lists := func(patterns ...string) {
		t.Helper()
		said, err := call("nodes", "ls", "-c", p.config)
		lines := strings.Split(strings.TrimSpace(said), "\n")
		if err != nil || len(lines) != 1+len(patterns) {
			t.Fatalf("it lists\n%s, %v", said, err)
		}
		for i, pattern := range patterns {
			if !regexp.MustCompile("^" + pattern + "$").MatchString(lines[i+1]) {
				t.Errorf("it lists\n%s, want %s", lines[i+1], pattern)
			}
		}
	}
	lists(`a +up +1 +v1 +http://a:5000 +gpu=a100,region=eu +s1 \(m:2\), s2`, `b +up +0 +- +- +- +-`)
	if said, err := call("nodes", "drain", "a", "-c", p.config); err != nil || said != "Node a claims no more jobs.\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	hung := time.After(hang)
	for { // it learns of it by itself
		changed := a.Changed()
		if a.Draining("a") {
			break
		}
		select {
		case <-changed:
		case <-hung:
			t.Fatal("the node does not learn that it is drained")
		}
	}
	if a.Draining("b") || ledgers["b"].Draining("b") {
		t.Error("the other node is drained, too")
	}
	lists(`a +up, drained +1 .*`, `b +up +0 .*`)
	if _, err := call("nodes", "forget", "a", "-c", p.config); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a node that is up is forgotten: %v", err)
	}
	if err := leases["a"].Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	lists(`a +up, drained +1 .*`, `b +up +0 .*`) // its job waits for it for a while
	if err := server.Exec(t.Context(), "postgres", "UPDATE shepherd.nodes SET expires_at = NULL WHERE name = 'a'"); err != nil {
		t.Fatal(err)
	}
	lists(`a +stopped, drained +1 +v1 +http://a:5000 +gpu=a100,region=eu +s1, s2`, `b +up +0 .*`)
	var shown []remote.Node
	if said, err := call("nodes", "ls", "-o", "json", "-c", p.config); err != nil || json.Unmarshal([]byte(said), &shown) != nil || len(shown) != 2 || shown[0].State != "stopped" || !shown[0].Drained || shown[0].Jobs != 1 || len(shown[0].Sheep) != 2 || shown[1].State != "up" {
		t.Errorf("as JSON: %s, %v", said, err)
	}
	if said, err := call("nodes", "ls", "-o", "name", "-c", p.config); err != nil || said != "a\nb\n" {
		t.Errorf("names: %q, %v", said, err)
	}
	if said, err := call("nodes", "ls", "-o", "jsonl", "-c", p.config); err != nil || strings.Count(said, "\n") != 2 {
		t.Errorf("an object a line: %q, %v", said, err)
	}
	t.Run("watch", func(t *testing.T) { watchNodes(t, p.config, ledgers["b"]) })
	if said, err := call("nodes", "forget", "a", "-c", p.config); err != nil || said != "Node a is forgotten.\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	lists(`b +up +0 .*`)
	if rec, err := ledgers["b"].Get(t.Context(), "x"); err != nil || rec.State != job.Queued || rec.Holder != "" {
		t.Errorf("the forgotten node's job is %s of %q, %v", rec.State, rec.Node, err)
	}
	if said, err := call("nodes", "resume", "b", "-c", p.config); err != nil || said != "Node b claims jobs again.\n" {
		t.Errorf("it says %q, %v", said, err)
	}
	for _, command := range []string{"drain", "resume", "forget"} {
		if _, err := call("nodes", command, "none", "-c", p.config); !errdefs.IsNotFound(err) {
			t.Errorf("%s of no node: %v", command, err)
		}
		if _, err := call("nodes", command); remote.ExitCode(err) != exitUsage {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// After the list there is a line for each node that has changed.
func watchNodes(t *testing.T, config string, b *postgres.Ledger) {
	printed, out := io.Pipe()
	root := newRoot("shepherdd", Build{})
	root.SetOut(out)
	root.SetErr(io.Discard)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetArgs([]string{"nodes", "--watch", "-c", config})
	ctx, stop := context.WithTimeout(t.Context(), hang)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		err := root.ExecuteContext(ctx)
		_ = out.CloseWithError(err)
		ended <- err
	}()
	lines := bufio.NewScanner(printed)
	for _, pattern := range []string{"NAME .*", "a +stopped, drained .*", "b +up +0 +- .*", "b +up +0 +v2 .*"} {
		if strings.Contains(pattern, "v2") {
			if err := b.Announce(t.Context(), "b", postgres.About{Version: "v2"}); err != nil {
				t.Error(err)
			}
		}
		if !lines.Scan() || !regexp.MustCompile("^"+pattern+"$").MatchString(lines.Text()) {
			t.Errorf("it prints %q, %v, not %s", lines.Text(), lines.Err(), pattern)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}
