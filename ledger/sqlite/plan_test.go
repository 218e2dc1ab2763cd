package sqlite

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var update = flag.Bool("update", false, "rewrite the expected plans")

// TestPlans asks SQLite how it runs each statement. The plans are those in
// testdata/plans.txt, and none reads all jobs, attempts or events or sorts them,
// or it would take longer the more there are.
func TestPlans(t *testing.T) {
	plans := checkPlans(t, openTemp(t, Config{}))
	bounded := openTemp(t, Config{Policy: ledger.Policy{HalfLife: time.Hour}})
	for _, one := range new(statements).policyStatements(bounded.writer.cfg.Policy) {
		plan := explainPlan(t, bounded, one.text)
		if badPlan.MatchString(plan) {
			t.Errorf("%s:%s", one.name, plan)
		}
		plans += fmt.Sprintf("%s:%s\n", one.name, plan)
	}
	expected := filepath.Join("testdata", "plans.txt")
	if *update {
		if err := os.WriteFile(expected, []byte(plans), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(expected)
	if err != nil {
		t.Fatal(err)
	}
	if plans != string(want) {
		t.Errorf("the plans are not those of %s (go test -run TestPlans -update writes them):\n%s", expected, plans)
	}
}

// badPlan matches a plan that reads or sorts too much.
var badPlan = regexp.MustCompile(`SCAN (jobs|attempts|j)\b|TEMP B-TREE`)

// checkPlans returns the plans of all statements, and fails the test for those
// that read or sort too much.
func checkPlans(t *testing.T, l *Ledger) string {
	t.Helper()
	queries := map[string]string{"files to remove": queryToRemove, "next files to remove": queryNextToRemove, "upload": queryUpload, "uploads to remove": queryDueUploads}
	for _, one := range append(new(statements).list(), new(readStatements).list()...) {
		queries[one.name] = one.text
	}
	for name, filter := range map[string]ledger.Filter{
		"list":                   {},
		"list a state":           {States: []job.State{job.Failed}},
		"list states":            {States: []job.State{job.Failed, job.Done, job.Queued}},
		"list a sheep":           {Sheep: "a"},
		"list a model":           {Model: job.Model{Name: "m"}},
		"list a tenant":          {Tenant: "wool"},
		"list a group":           {Group: "g"},
		"list narrowly":          {States: []job.State{job.Failed, job.Done}, Sheep: "a", Model: job.Model{Name: "m"}},
		"list a label":           {Labels: job.Labels{"a": "1"}},
		"list labels narrowly":   {Labels: job.Labels{"a": "1", "b": "2"}, States: []job.State{job.Failed, job.Done}, Tenant: "wool", Prefix: "x", Since: time.Unix(1, 0)},
		"list a prefix":          {Prefix: "x", Since: time.Unix(1, 0), Before: time.Unix(2, 0)},
		"list a tenant narrowly": {States: []job.State{job.Failed}, Sheep: "a", Model: job.Model{Name: "m"}, Tenant: "wool"},
	} {
		queries[name], _ = listQuery(filter, 0, 10)
		filter.Newest = true
		queries[name+", newest first"], _ = listQuery(filter, 0, 10)
	}
	for name, filter := range map[string]ledger.EventFilter{
		"events": {}, "events of a job": {Job: "x"}, "events of a tenant": {Tenant: "wool"}, "events of a tenant's job": {Job: "x", Tenant: "wool"},
	} {
		queries[name], _ = eventsQuery(1, 2, filter, 10)
		queries["newest "+name], _ = newestEventsQuery(2, filter, 10)
	}
	for name, filter := range map[string]job.DeliveryFilter{
		"deliveries": {}, "deliveries of a job": {Job: "x"}, "deliveries of a tenant": {Tenant: "wool"},
		"deliveries narrowly": {Job: "x", Tenant: "wool", Receiver: "r", State: job.DeliveryWaiting},
	} {
		queries[name], _ = deliveriesQuery(filter, 7, 10)
	}
	queries["undelivered"] = undeliveredQuery
	for _, name := range []string{"begin", "commit", "rollback"} {
		delete(queries, name)
	}
	var plans strings.Builder
	for _, name := range slices.Sorted(maps.Keys(queries)) {
		plan := explainPlan(t, l, queries[name])
		if badPlan.MatchString(plan) || strings.Contains(plan, "SCAN events") && name != "oldEvents" { // which reads the first few
			t.Errorf("%s:%s", name, plan)
		}
		fmt.Fprintf(&plans, "%s:%s\n", name, plan)
	}
	if plan := explainPlan(t, l, `SELECT * FROM jobs WHERE attempt = 7`); !badPlan.MatchString(plan) {
		t.Errorf("this test cannot tell: %s", plan)
	}
	return plans.String()
}

// TestPlansOfAnalyzed runs ANALYZE on a ledger with many jobs, nearly all alike: with its
// statistics SQLite chooses no plan that reads all of them, either.
func TestPlansOfAnalyzed(t *testing.T) {
	l := openTemp(t, Config{})
	fill(t, l, 0, 5000)
	for i := range 500 {
		if _, err := l.Cancel(t.Context(), numbered(i).ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.change(t.Context(), "analyze", func(tx *tx) error {
		_, err := tx.w.conn.ExecContext(t.Context(), "ANALYZE")
		return err
	}, nil); err != nil {
		t.Fatal(err)
	}
	var stats int
	if err := l.reads.QueryRow(`SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'jobs'`).Scan(&stats); err != nil || stats == 0 {
		t.Fatalf("%d statistics, %v", stats, err)
	}
	checkPlans(t, l)
}

// explainPlan returns the plan of a query, one step a line.
func explainPlan(t *testing.T, l *Ledger, query string) string {
	t.Helper()
	params := strings.Count(query, "?")
	if numbered := regexp.MustCompile(`\?\d`).FindAllString(query, -1); numbered != nil {
		params = int(slices.Max(numbered)[1] - '0')
	}
	rows, err := l.reads.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, make([]any, params)...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan.WriteString("\n  " + detail)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if plan.Len() == 0 {
		plan.WriteString(" no reads") // an INSERT of values
	}
	return plan.String()
}
