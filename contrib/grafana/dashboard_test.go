// Package grafana has no code: its test checks the dashboard in this directory. test/e2e checks
// that a daemon has the metrics of the dashboard.
package grafana

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ H, W, X, Y int }
	Targets []struct{ Expr, RefID string }
}

// TestDashboard checks the layout of the panels, and every query with promtool, as a recording
// rule.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("shepherd.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID, Title string
		Panels     []panel
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	described, err := os.ReadFile("../../docs/metrics.md") // which a test compares with the daemon
	if err != nil {
		t.Fatal(err)
	}
	ids, taken := map[int]string{}, map[[2]int]string{}
	rules := "groups:\n- name: dashboard\n  rules:\n"
	queries := 0
	for _, p := range dashboard.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("panels %q and %q have the same id", other, p.Title)
		}
		ids[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("panel %q lies on %q or beyond the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
			if regexp.MustCompile(`\$\w`).MatchString(expr) {
				t.Errorf("panel %q has a variable that this test does not know: %s", p.Title, expr)
			}
			for _, name := range regexp.MustCompile(`shepherd_\w+`).FindAllString(expr, -1) {
				name = regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
				if !strings.Contains(string(described), "`"+name+"`") {
					t.Errorf("panel %q shows %s, which docs/metrics.md does not know", p.Title, name)
				}
			}
			quoted, err := json.Marshal(expr)
			if err != nil {
				t.Fatal(err)
			}
			queries++
			rules += "  - record: dashboard:panel" + strings.Repeat("_", queries) + "\n    expr: " + string(quoted) + "\n"
		}
	}
	if dashboard.UID != "shepherd" || queries < 20 {
		t.Errorf("dashboard %q has %d queries", dashboard.UID, queries)
	}
	file := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Command(t, "promtool", "prometheus"), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
