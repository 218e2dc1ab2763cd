package sqlite

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestPlans asks SQLite how it runs each statement: none may look at all jobs
// or sort them, or it would take longer the more jobs there are.
func TestPlans(t *testing.T) {
	l := openTemp(t, Config{})
	queries := map[string]string{}
	for _, one := range append(new(statements).list(), new(readStatements).list()...) {
		queries[one.name] = one.text
	}
	for name, filter := range map[string]ledger.Filter{
		"list":          {},
		"list a state":  {States: []job.State{job.Failed}},
		"list states":   {States: []job.State{job.Failed, job.Done}},
		"list narrowly": {States: []job.State{job.Failed}, Sheep: "a", Model: job.Model{Name: "m"}},
	} {
		queries[name], _ = listQuery(filter, 0, 10)
	}
	for _, name := range []string{"begin", "commit", "rollback"} {
		delete(queries, name)
	}
	bad := regexp.MustCompile(`SCAN jobs|TEMP B-TREE`)
	for name, query := range queries {
		plan := explainPlan(t, l, query)
		if bad.MatchString(plan) || strings.Contains(plan, "SCAN overtakes") && name != "prune" {
			t.Errorf("%s:%s", name, plan)
		}
	}
	if plan := explainPlan(t, l, `SELECT * FROM jobs WHERE attempt = 7`); !bad.MatchString(plan) {
		t.Errorf("this test cannot tell: %s", plan)
	}
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
