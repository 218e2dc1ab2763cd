package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// cutsPerFault is the ratio of cuts in TestCuts to faults in TestFaults. A daemon takes far
// longer to start than a core.
const cutsPerFault = 0.75

// jobsPerCut is how many jobs are submitted for each cut.
const jobsPerCut = 6

// cable is a network link of a node, in one or both directions.
type cable struct {
	name      string
	cut, mend func()
	ends      bool // the daemon exits if it is cut for longer than the lease
}

// cables returns the cables of a node to a place, for each direction and both.
func cables(to string, l *link, ends bool) []cable {
	return []cable{
		{to + ", both ways", l.cut, l.mend, ends},
		{to + ", what it sends", l.cutOut, l.mendOut, ends},
		{to + ", what it is sent", l.cutIn, l.mendIn, ends},
	}
}

// caller is a client of a machine's API.
type caller struct{ client http.Client }

// ask sends a request, and returns the status and the body.
func (c *caller) ask(ctx context.Context, method, path, body string) (status int, text []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:5000"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	return answer.StatusCode, text, err
}

// callers are clients of all machines.
type callers []*caller

// persist sends a request to one machine after the other until done accepts the answer.
func (c callers) persist(ctx context.Context, method, path, body string, done func(status int, text []byte) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last string
	for ctx.Err() == nil {
		status, text, err := c[rand.N(len(c))].ask(ctx, method, path, body)
		if err == nil && done(status, text) {
			return nil
		}
		last = fmt.Sprintf("%d %s %v", status, text, err)
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("never answered as expected; last: " + last)
}

// run submits a job and waits for its end.
func (c callers) run(ctx context.Context, id, gate string) error {
	body := fmt.Sprintf(`{"job_id": %q, "model": {"name": "gate", "version": "v1"}, "payload": %q}`, id, gate)
	err := c.persist(ctx, "POST", "/start-job", body, func(status int, _ []byte) bool {
		return status == http.StatusOK || status == http.StatusConflict // the answer to an earlier request was lost
	})
	if err != nil {
		return fmt.Errorf("submit %s: %w", id, err)
	}
	var view struct{ Status job.State }
	err = c.persist(ctx, "GET", "/jobs/"+id, "", func(status int, text []byte) bool {
		return status == http.StatusOK && json.Unmarshal(text, &view) == nil && view.Status.Final()
	})
	if err != nil {
		return fmt.Errorf("await %s, which is %q: %w", id, view.Status, err)
	}
	return nil
}

// TestCuts submits jobs to three daemons in networks of their own, while their cables to the
// database, to the storage and to one another are cut one after the other, in both
// directions or one. A daemon that exits without the database is started again, as systemd
// does; so is one that a busy machine has renew its lease too late.
func TestCuts(t *testing.T) {
	var n links
	databaseAt, storageAt := newPlace(t, "database"), newPlace(t, "storage")
	database, bin := startServices(t, databaseAt, storageAt)

	const nodes = 3
	places, machines, clients, links := make([]*place, nodes), make([]*machine, nodes), make(callers, nodes), make([][]cable, nodes)
	for i := range places {
		places[i] = newPlace(t, fmt.Sprint("n", i))
		own := fmt.Sprintf("10.78.0.%d", i+1) // where all others reach it
		ipRun(t, "-n", places[i].name, "address", "add", own+"/32", "dev", "lo")
		toDatabase, toStorage := n.connect(places[i], databaseAt), n.connect(places[i], storageAt)
		links[i] = append(cables("database", toDatabase, true), cables("storage", toStorage, false)...)
		for k := range i {
			l := n.connect(places[i], places[k])
			links[i] = append(links[i], cables("another node", l, false)...)
			ipRun(t, "-n", places[i].name, "route", "add", fmt.Sprintf("10.78.0.%d/32", k+1), "via", l.Far, "src", own)
			ipRun(t, "-n", places[k].name, "route", "add", own+"/32", "via", l.Near, "src", fmt.Sprintf("10.78.0.%d", k+1))
		}
		machines[i] = newMachine(t, bin, fmt.Sprint("n", i), places[i], fmt.Sprintf(`, address: 'http://%[5]s:5000'}
ledger: {url: 'postgres://%[1]s@%[2]s/postgres?sslmode=disable', lease: 6s}
storage: {url: 'http://%[3]s:7000', access_key: %[4]s, secret_key: %[6]s}
scheduling: {max_attempts: 1000}
api: {host: 0.0.0.0, port: 5000, hosts: ['%[5]s']}`,
			postgrestest.Superuser, toDatabase.Far, toStorage.Far, accessKey, own, secretKey))
		clients[i] = &caller{http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: places[i].dial}}}
	}
	for _, m := range machines {
		m.start()
	}
	gate := filepath.Join(t.TempDir(), "gate")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	cuts := int(float64(*faults) * cutsPerFault)
	jobs := cuts * jobsPerCut
	var working sync.WaitGroup
	var next, ended atomic.Int64
	for range 4 {
		working.Go(func() {
			for i := next.Add(1); i <= int64(jobs); i = next.Add(1) {
				if err := clients.run(t.Context(), fmt.Sprintf("job-%d", i), gate); err != nil {
					t.Error(err)
				}
				ended.Add(1)
			}
		})
	}
	more := func(except *machine) { // in the middle of it
		for mark := ended.Load(); ended.Load() < min(mark+3, int64(jobs)); {
			time.Sleep(10 * time.Millisecond)
			for _, m := range machines {
				if m != except {
					m.keepUp()
				}
			}
		}
	}
	did, ends := map[string]int{}, 0
	for i := range cuts {
		more(nil)
		// The kinds in turn, each on any node that has such a cable.
		const ofNode, kinds = 6, 9
		at, kind := rand.N(nodes), i%kinds
		if kind >= ofNode {
			at = 1 + rand.N(nodes-1)
			kind += rand.N(at) * (kinds - ofNode)
		}
		c := links[at][kind]
		c.cut()
		did[c.name]++
		switch {
		case c.ends && i/kinds%2 == 0: // for longer than the lease
			machines[at].awaitExit()
			ends++
		case c.ends:
			more(machines[at])
		default:
			more(nil)
		}
		c.mend()
	}
	worked := make(chan struct{})
	go func() { working.Wait(); close(worked) }()
	for over := false; !over; {
		for _, m := range machines {
			m.keepUp()
		}
		select {
		case <-worked:
			over = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	checkJobs(t, database.URL("postgres"), jobs, func(id job.ID, last job.Attempt) error {
		node, _, _ := strings.Cut(last.Node, "-")
		return clients.persist(t.Context(), "GET", "/jobs/"+string(id)+"/result", "", func(status int, text []byte) bool {
			return status == http.StatusOK && string(text) == node+"\n"
		})
	})
	t.Logf("%d jobs, cut off: %v; daemons ended: %d", jobs, did, ends)
}
