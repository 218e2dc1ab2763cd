// Package prometheus has no code: its test checks the alert rules in this directory with
// promtool.
package prometheus

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(testenv.Command(t, "promtool", "prometheus"), args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestRules evaluates the rules over test series with promtool: each alert fires when it should,
// and only then.
func TestRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", "shepherd.rules.yml")
	promtool(t, "test", "rules", "shepherd.rules.test.yml")
}

// TestAlertsAreDocumented checks that the documentation's table has exactly the alerts.
func TestAlertsAreDocumented(t *testing.T) {
	names := func(file, pattern string) map[string]bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			found[string(m[1])] = true
		}
		return found
	}
	alerts := names("shepherd.rules.yml", `alert: (\w+)`)
	documented := names("../../docs/operations.md", "(?m)^\\| `(Shepherd\\w+)` \\|")
	for name := range alerts {
		if !documented[name] {
			t.Errorf("docs/operations.md does not say what to do at %s", name)
		}
	}
	for name := range documented {
		if !alerts[name] {
			t.Errorf("docs/operations.md tells of %s, which is no alert", name)
		}
	}
	if len(alerts) == 0 {
		t.Error("there are no alerts")
	}
}
