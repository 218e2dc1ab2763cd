package fleet

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// Two nodes, a database and a storage, each in a network of its own. One node is cut off
// from the other, from the storage, and from the database.
func TestPartitions(t *testing.T) {
	var n links
	databaseAt, storageAt, aAt, bAt := newPlace(t, "database"), newPlace(t, "storage"), newPlace(t, "a"), newPlace(t, "b")
	aDatabase, bDatabase := n.connect(aAt, databaseAt), n.connect(bAt, databaseAt)
	aStorage, bStorage := n.connect(aAt, storageAt), n.connect(bAt, storageAt)
	aB := n.connect(aAt, bAt)

	_, bin := startServices(t, databaseAt, storageAt)
	node := func(name string, at *place, toDatabase, toStorage *link, address string) *machine {
		return newMachine(t, bin, name, at, fmt.Sprintf(`, address: 'http://%[5]s:5000'}
ledger: {url: 'postgres://%[1]s@%[2]s/postgres?sslmode=disable', lease: 20s}
storage: {url: 'http://%[3]s:7000', access_key: %[4]s, secret_key: %[6]s}
api: {host: 0.0.0.0, port: 5000, hosts: ['%[5]s']}`,
			postgrestest.Superuser, toDatabase.Far, toStorage.Far, accessKey, address, secretKey))
	}
	a, b := node("a", aAt, aDatabase, aStorage, aB.Near), node("b", bAt, bDatabase, bStorage, aB.Far)
	a.start()
	b.start()
	gates := t.TempDir()

	// From each other: jobs run, and each node reports that the other does not answer.
	gate := gates + "/1"
	has := occupy(a, b, gate, [2]string{"job-1", "job-2"})
	told := func(m *machine) string {
		var list struct {
			Sheep []struct {
				Name   string
				Detail *string
			}
		}
		if err := m.ask("GET", "/sheep", "", &list); err != nil {
			return err.Error()
		}
		said := ""
		for _, s := range list.Sheep {
			if said += s.Name + " "; s.Detail != nil {
				said += *s.Detail + " "
			}
		}
		return said
	}
	unanswered := func(m *machine) (names []string) {
		var list struct {
			Unanswered []struct{ Name string }
		}
		if err := m.ask("GET", "/models", "", &list); err != nil {
			t.Error(err)
		}
		for _, n := range list.Unanswered {
			name, _, _ := strings.Cut(n.Name, "-")
			names = append(names, name)
		}
		return names
	}
	aB.cut()
	if of, ofOther := unanswered(a), unanswered(b); fmt.Sprint(of, ofOther) != "[b] [a]" {
		t.Errorf("the models of %v and of %v are not known, expected those of b and of a", of, ofOther)
	}
	for _, m := range []*machine{a, b} {
		m.eventually("it says that the other node does not answer", func() bool { return strings.Contains(told(m), "does not answer") })
	}
	aB.mend()
	for _, m := range []*machine{a, b} {
		m.eventually("all models are known", func() bool { return len(unanswered(m)) == 0 })
	}
	for _, m := range []*machine{a, b} {
		m.eventually("the other node answers", func() bool {
			said := told(m)
			return strings.Contains(said, "a-") && strings.Contains(said, "b-") && !strings.Contains(said, "does not answer")
		})
	}

	// From the storage: its job waits, and the other node's does not.
	aStorage.cut()
	open(t, gate)
	b.done(has["b"], attempt{"b", "done"})
	if status, attempts, err := b.view(has["a"]); err != nil || status != "processing" || len(attempts) != 1 {
		t.Errorf("without the storage the job is %s after %v, %v", status, attempts, err)
	}
	aStorage.mend()
	b.done(has["a"], attempt{"a", "done"})

	// From the database: the node exits, and the other node runs its job.
	gate = gates + "/2"
	has = occupy(a, b, gate, [2]string{"job-3", "job-4"})
	aDatabase.cut()
	if code := a.awaitExit(); code != 1 || !strings.Contains(a.log.String(), "lease in the ledger is lost") {
		t.Errorf("the node without the database ended with %d:\n%s", code, a.log)
	}
	if left := a.processes(); len(left) > 0 {
		t.Errorf("it has left its runners: %v", left)
	}
	open(t, gate)
	b.done(has["b"], attempt{"b", "done"})
	b.done(has["a"], attempt{"a", "node-lost"}, attempt{"b", "done"})
	aDatabase.mend()
	a.start()
	gate = gates + "/3"
	has = occupy(a, b, gate, [2]string{"job-5", "job-6"})
	open(t, gate)
	for _, name := range []string{"a", "b"} {
		a.done(has[name], attempt{name, "done"})
	}
}

// The database is restarted, and then fails over to its standby, while jobs run: within the
// lease no job loses an attempt.
func TestFailover(t *testing.T) {
	primary := postgrestest.New(t, "fsync=on", "synchronous_commit=on")
	standby, err := primary.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	both := "postgres:///postgres?" + url.Values{
		"host": {primary.Dir() + "," + standby.Dir()}, "port": {primary.Port + "," + standby.Port},
		"user": {postgrestest.Superuser}, "sslmode": {"disable"}, "target_session_attrs": {"read-write"},
	}.Encode()
	storage := serveStorage(t, nil, "127.0.0.1:0")
	bin := buildPrograms(t)
	node := func(name string) *machine {
		return newMachine(t, bin, name, nil, fmt.Sprintf(`}
ledger: {url: '%s', lease: 2m}
storage: {url: 'http://%s', access_key: %s, secret_key: %s}
api: {host: 127.0.0.1, port: 0}`, both, storage, accessKey, secretKey))
	}
	a, b := node("a"), node("b")
	a.start()
	b.start()
	gates := t.TempDir()

	gate := filepath.Join(gates, "1")
	has := occupy(a, b, gate, [2]string{"job-1", "job-2"})
	primary.Stop()
	open(t, gate)
	if err := primary.Restart(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		a.done(has[name], attempt{name, "done"})
	}

	gate = filepath.Join(gates, "2")
	has = occupy(a, b, gate, [2]string{"job-3", "job-4"})
	primary.Kill()
	open(t, gate)
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		a.done(has[name], attempt{name, "done"})
	}
	a.submit("job-5", gate)
	by := ""
	b.eventually("job-5 is done", func() bool {
		status, attempts, err := b.view("job-5")
		if err == nil && status == "done" {
			by = attempts[0].Node
		}
		return by != ""
	})
	for _, id := range []string{"job-1", "job-2", "job-3", "job-4"} { // the standby has all that was acknowledged
		if status, _, err := b.view(id); err != nil || status != "done" {
			t.Errorf("after the failover %s is %q, %v", id, status, err)
		}
	}
}

// startServices starts a PostgreSQL and a storage for nodes in networks of their own, and
// builds the programs.
func startServices(t *testing.T, databaseAt, storageAt *place) (database *postgrestest.Server, bin string) {
	t.Helper()
	err := databaseAt.inside(func() error {
		database = postgrestest.New(t, "listen_addresses=*")
		return database.Allow("10.77.0.0/16")
	})
	if err != nil {
		t.Fatal(err)
	}
	serveStorage(t, storageAt, "0.0.0.0:7000")
	return database, buildPrograms(t)
}
