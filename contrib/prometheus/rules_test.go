// Package prometheus holds no code: its test checks the alert rules in this
// folder with promtool.
package prometheus

import (
	"os/exec"
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

// TestRules has promtool read the rules and evaluate them over made-up series:
// each alert comes when it should, and not when it should not.
func TestRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", "shepherd.rules.yml")
	promtool(t, "test", "rules", "shepherd.rules.test.yml")
}
