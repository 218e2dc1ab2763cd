package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
	"github.com/iterait/shepherd/storage/embedded"
)

// newFleet makes machines that share a ledger in PostgreSQL and a storage, with a sheep
// each.
func newFleet(t *testing.T, names ...string) (map[string]*world, *postgrestest.Server) {
	t.Helper()
	database := postgrestest.New(t)
	storage, err := embedded.Open(embedded.Config{Dir: filepath.Join(t.TempDir(), "storage"), Listen: "127.0.0.1:0", AccessKey: accessKey, SecretKey: secretKey, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- storage.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := storage.Close(); err != nil {
			t.Error(err)
		}
	})
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "between us\n")
	fleet := make(map[string]*world)
	for _, name := range names {
		w := newWorld(t)
		w.edit("  listen: 127.0.0.1:0\n", "  url: http://"+storage.Addr()+"\n")
		w.edit("api:\n", fmt.Sprintf("node: %s\nledger: {url: %q, lease: 40s}\nfleet: {secret_file: %s}\napi:\n", name, database.URL("postgres"), secret))
		fleet[name] = w
	}
	return fleet, database
}

// endLease ends the lease of a node.
func endLease(t *testing.T, database *postgrestest.Server, name string) {
	t.Helper()
	err := database.Exec(t.Context(), "postgres", "UPDATE shepherd.nodes SET expires_at = clock_timestamp() - interval '1 second' WHERE name LIKE '"+name+"-%'")
	if err != nil {
		t.Fatal(err)
	}
}

// occupy submits a job for each node, which waits for the gate, and returns which job
// each has.
func occupy(t *testing.T, fleet map[string]*world, gate string, ids ...string) map[string]string {
	t.Helper()
	for i, name := range []string{"a", "b"} {
		fleet[name].submit(ids[i], "echo:v1", "wait "+gate)
	}
	has := make(map[string]string)
	for _, name := range []string{"a", "b"} {
		w := fleet[name]
		w.eventually("node "+name+" runs a job", func() bool {
			for _, line := range w.noted("job") {
				for _, id := range ids {
					if strings.Contains(line, id) {
						has[name] = id
					}
				}
			}
			return has[name] != ""
		})
	}
	if has["a"] == has["b"] {
		t.Fatalf("both nodes run %s", has["a"])
	}
	return has
}

// sheepOf returns the job of each sheep, by NODE/SHEEP without the nodes' suffixes.
func sheepOf(t *testing.T, list string) map[string]string {
	t.Helper()
	var answer struct {
		Sheep []struct {
			Name string
			Job  *string
		}
	}
	if err := json.Unmarshal([]byte(list), &answer); err != nil {
		t.Fatalf("%s: %v", list, err)
	}
	jobs := make(map[string]string)
	for _, s := range answer.Sheep {
		node, name, _ := strings.Cut(s.Name, "/")
		node, _, _ = strings.Cut(node, "-")
		jobs[node+"/"+name] = ""
		if s.Job != nil {
			jobs[node+"/"+name] = *s.Job
		}
	}
	return jobs
}

// causes returns the causes of a job's attempts, each with its node.
func causes(t *testing.T, w *world, id string) []string {
	t.Helper()
	code, text := w.request("GET", "/jobs/"+id, "")
	var view struct {
		Attempts []struct{ Node, Cause string }
	}
	if err := json.Unmarshal([]byte(text), &view); code != 200 || err != nil {
		t.Fatalf("job %s: %d %s, %v", id, code, text, err)
	}
	var ends []string
	for _, a := range view.Attempts {
		node, _, _ := strings.Cut(a.Node, "-")
		ends = append(ends, node+" "+a.Cause)
	}
	return ends
}

// Two daemons share a ledger and a storage. Each runs and shows jobs that the other has
// accepted. If one dies or loses its lease, the other runs its jobs; a daemon that has lost
// its lease exits, and joins again when it is started.
func TestFleet(t *testing.T) {
	fleet, database := newFleet(t, "a", "b")
	a, b := fleet["a"], fleet["b"]
	a.start()
	b.start()
	gate := a.dir + "/gate"
	has := occupy(t, fleet, gate, "job-1", "job-2")
	for _, w := range fleet {
		for _, id := range has {
			if s := w.status(id); s.Status != "processing" {
				t.Errorf("%s is %s", id, s.Status)
			}
		}
	}

	// Each node shows the sheep of both, and their logs.
	for _, w := range fleet {
		w.eventually("the sheep of both are known", func() bool {
			code, list := w.request("GET", "/sheep", "")
			names := sheepOf(t, list)
			return code == 200 && len(names) == 2 && names["a/bare_sheep"] == has["a"] && names["b/bare_sheep"] == has["b"]
		})
		for _, id := range has {
			w.eventually("the log of "+id+" is known", func() bool {
				code, log := w.request("GET", "/jobs/"+id+"/logs", "")
				return code == 200 && log == "waiting\n"
			})
		}
	}

	// Each shows both nodes, in the same fleet.
	for name, w := range fleet {
		for _, pattern := range []string{
			`shepherd_node_info{fleet="a-\w+",node="` + name + `-\w+"} 1`, `shepherd_node_up{node="a-\w+"} 1`, `shepherd_node_up{node="b-\w+"} 1`, `shepherd_node_drained{node="a-\w+"} 0`,
			`shepherd_node_held_jobs{node="a-\w+"} 1`, `shepherd_node_held_jobs{node="b-\w+"} 1`, `shepherd_node_models{node="a-\w+",where="loaded"} 1`, `shepherd_node_models{node="b-\w+",where="disk"} 0`,
			`shepherd_lease_renewals_late_total \d`,
		} {
			w.eventually("the metrics of "+name+" show "+pattern, func() bool { return regexp.MustCompile(pattern).MatchString(w.metrics()) })
		}
	}

	// Node a and all its processes are killed.
	a.kill()
	for pid := range a.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	endLease(t, database, "a")
	write(t, gate, "")
	for _, id := range has {
		b.expectDone(id, "wait "+gate)
	}
	if got := causes(t, b, has["a"]); len(got) != 2 || got[0] != "a node-lost" || got[1] != "b done" {
		t.Errorf("the attempts of the dead node's job: %v", got)
	}
	if got := causes(t, b, has["b"]); len(got) != 1 {
		t.Errorf("the attempts of the other job: %v", got)
	}

	// It comes back, and its lease ends while it is up.
	a.start()
	gate += "-2"
	has = occupy(t, fleet, gate, "job-3", "job-4")
	endLease(t, database, "a")
	a.awaitExit()
	if code := a.daemon.ProcessState.ExitCode(); code != 1 || !strings.Contains(a.log.String(), "lease in the ledger is lost") {
		t.Errorf("the daemon without a lease ended with %d:\n%s", code, a.log)
	}
	write(t, gate, "")
	for _, id := range has {
		b.expectDone(id, "wait "+gate)
	}
	if got := causes(t, b, has["a"]); len(got) != 2 || got[0] != "a node-lost" || got[1] != "b done" {
		t.Errorf("the attempts of the lost node's job: %v", got)
	}
	a.start()

	// A drained node accepts jobs and runs none.
	nodes := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(programs+"/shepherdd", append([]string{"nodes", "-c", a.config}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("nodes %v: %v %s", args, err, out)
		}
		return string(out)
	}
	name := strings.Fields(strings.Split(nodes("ls"), "\n")[1])[0]
	nodes("drain", name)
	a.logged("The node is (drained)")
	ran := len(a.noted("job"))
	for _, id := range []string{"job-5", "job-6", "job-7"} {
		a.submit(id, "echo:v1", id)
		a.expectDone(id, id)
	}
	if got := a.noted("job"); len(got) != ran {
		t.Errorf("the drained node ran %v", got[ran:])
	}
	nodes("resume", name)
	a.logged("The node takes jobs (again)")
	a.submit("job-8", "echo:v1", "eight")
	for _, w := range fleet {
		w.expectDone("job-8", "eight")
	}
	if listed := nodes("ls"); strings.Count(listed, " up ") != 2 || strings.Count(listed, "bare_sheep") != 2 {
		t.Errorf("the nodes are\n%s", listed)
	}
	if b.stop() != 0 || a.stop() != 0 {
		t.Error("a daemon did not end well")
	}
}

// Nodes connect by mutual TLS: each verifies the other's certificate, and sends its own and
// the secret. A node with a certificate of another authority, or with another secret, gets no
// requests, and is listed with the reason.
func TestFleetTLS(t *testing.T) {
	fleet, _ := newFleet(t, "a", "b")
	a, b := fleet["a"], fleet["b"]
	a.authority("nodes")
	a.authority("strangers")
	a.certificate("nodes", "alice", "email:alice@example.com")
	for _, signer := range []string{"nodes", "strangers"} {
		for _, name := range []string{"a", "b"} {
			a.certificate(signer, name+"-"+signer, "DNS:localhost,IP:127.0.0.1")
		}
	}
	for name, w := range fleet {
		port := testenv.FreePort(t)
		w.edit("  port: 0\nsheep", fmt.Sprintf(`  port: %[1]d
  tls:
    cert_file: %[2]s/%[3]s-nodes.crt
    key_file: %[2]s/%[3]s-nodes.key
    client_ca_file: %[2]s/nodes.crt
    clients:
      - {name: alice@example.com, scopes: [read]}
sheep`, port, a.dir, name))
		w.edit("fleet: {", fmt.Sprintf("fleet: {ca_file: %s/nodes.crt, address: 'https://127.0.0.1:%d', ", a.dir, port))
	}
	serve := func(w *world) {
		t.Helper()
		w.launch()
		w.api = w.logged(`Shepherd API is available at (https://\S+)`)
	}
	// told returns node a's view of node b's sheep.
	told := func() string {
		t.Helper()
		status, body := a.curl("--cacert", "nodes.crt", "--cert", "alice.crt", "--key", "alice.key", a.api+"/sheep")
		var answer struct {
			Sheep []struct {
				Name   string
				Detail *string
			}
		}
		if err := json.Unmarshal([]byte(body), &answer); status != "200" || err != nil {
			t.Fatalf("the sheep: %s %s, %v", status, body, err)
		}
		for _, s := range answer.Sheep {
			if strings.HasPrefix(s.Name, "b-") && s.Detail != nil {
				return s.Name + ": " + *s.Detail
			}
			if strings.HasPrefix(s.Name, "b-") {
				return "well"
			}
		}
		return "nothing"
	}
	expect := func(when, want string) {
		t.Helper()
		last := ""
		a.eventually("with "+when+" the other node's sheep are told of as "+want, func() bool {
			last = told()
			return strings.Contains(last, want)
		})
	}
	serve(a)
	serve(b)
	expect("the right certificate", "well")

	b.stop()
	b.edit("b-nodes.crt", "b-strangers.crt")
	b.edit("b-nodes.key", "b-strangers.key")
	serve(b)
	expect("a stranger's certificate", "does not answer")

	b.stop()
	b.edit("b-strangers.crt", "b-nodes.crt")
	b.edit("b-strangers.key", "b-nodes.key")
	write(t, b.dir+"/other", "another secret\n")
	text := read(t, b.config)
	write(t, b.config, regexp.MustCompile(`secret_file: [^ }]+`).ReplaceAllString(text, "secret_file: "+b.dir+"/other"))
	serve(b)
	expect("another secret", "does not know this node's secret")

	b.stop()
	write(t, b.config, text)
	serve(b)
	expect("the right secret again", "well")
}
