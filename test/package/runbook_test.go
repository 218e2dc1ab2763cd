package package_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRunbook compares the alerts with those that docs/operations.md says what
// to do at.
func TestRunbook(t *testing.T) {
	rules, err := os.ReadFile("../../contrib/prometheus/shepherd.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	runbook, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1)
	for _, alert := range alerts {
		if !strings.Contains(string(runbook), "\n| `"+alert[1]+"` |") {
			t.Errorf("docs/operations.md does not say what to do at %s", alert[1])
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `Shepherd\\w+` \\|").FindAllString(string(runbook), -1)
	if len(rows) != len(alerts) || len(alerts) == 0 {
		t.Errorf("docs/operations.md tells of %d alerts, and there are %d", len(rows), len(alerts))
	}
}
