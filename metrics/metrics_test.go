package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/shepherd"
)

// machine is a core and a ledger with made-up answers.
type machine struct {
	waiting []ledger.Waiting
	err     error
}

func (m *machine) Sheep(context.Context) []job.Sheep {
	return []job.Sheep{{Name: "busy", Type: "bare", Running: true, Job: "j"}, {Name: "off", Type: "docker"}}
}
func (m *machine) StageBudget() (int64, int64) { return 7, 9 }
func (m *machine) Count(context.Context) (ledger.Counts, error) {
	return ledger.Counts{job.Queued: 3, job.Done: 5}, m.err
}
func (m *machine) Waiting(_ context.Context, most int) ([]ledger.Waiting, error) {
	return m.waiting[:min(most, len(m.waiting))], m.err
}

func (m *machine) Undelivered(context.Context) ([]ledger.Backlog, error) {
	return []ledger.Backlog{{Receiver: "", Messages: 2, Oldest: time.Now()}, {Receiver: "farm", Messages: 3, Oldest: time.Now().Add(-time.Hour)}}, m.err
}

func (m *machine) Load(context.Context) (ledger.Load, error) {
	return ledger.Load{
		Held: []ledger.HeldJobs{
			{Tenant: "wool", Model: job.Model{Name: "llama"}, Jobs: 2}, {Tenant: "wool", Model: job.Model{Name: "other"}, Jobs: 1}, {Model: job.Model{Name: "llama"}, Jobs: 1},
		},
		Used: map[string]time.Duration{"wool": 90 * time.Second},
	}, m.err
}

// policy is one of which everything is shown.
func policy(t *testing.T) ledger.Policy {
	t.Helper()
	rule, err := job.ParseRule("llama*")
	if err != nil {
		t.Fatal(err)
	}
	return ledger.Policy{HalfLife: time.Hour, Models: []ledger.ModelLimit{{Models: rule, MaxRunning: 4}}}
}

// all are metrics of which every one has a value.
func all(t *testing.T, from *machine) *Metrics {
	t.Helper()
	m := New("v1", "abc")
	m.Expose(Sources{
		Core: from, Ledger: from, Webhooks: from, Policy: policy(t), Folders: map[string]string{"data_root": t.TempDir(), "gone": "/no/such/folder"},
		Images: func(context.Context) (int64, int64, bool) { return 11, 12, true },
	})
	m.ExposeNodes(Nodes{Self: "b", Late: func() int64 { return 2 }, All: func(context.Context) ([]Node, error) {
		return []Node{{Name: "a", Drained: true, OnDisk: 5}, {Name: "b", Up: true, Held: 3, Loaded: 1, OnDisk: 4}}, from.err
	}})
	m.GPUs(twoGPUs)
	began := time.Now()
	for _, phase := range shepherd.Phases() {
		m.PhaseEnded(shepherd.PhaseResult{Phase: phase, Sheep: "s", Began: began, Ended: began.Add(3 * time.Second)})
	}
	m.PhaseEnded(shepherd.PhaseResult{Phase: shepherd.PhaseRun, Sheep: "s", Began: began, Ended: began, Err: &job.Failure{}})
	m.PhaseEnded(shepherd.PhaseResult{Phase: shepherd.PhaseRun, Sheep: "s", Began: began, Ended: began, Err: errors.New("x")})
	m.Ended("s", job.Done)
	m.Returned("s")
	m.Waited("s", time.Millisecond)
	for _, e := range []shepherd.RunnerEvent{shepherd.RunnerStarted, shepherd.RunnerSwitched, shepherd.RunnerCrashed, shepherd.RunnerRevived, shepherd.RunnerAdopted} {
		m.Runner("s", e)
	}
	m.Runner("s", "one that is not known")
	m.Receiver("farm")
	m.Receiver("")
	for _, state := range []job.DeliveryState{job.DeliveryDelivered, job.DeliveryWaiting, job.DeliveryWaiting, job.DeliveryGivenUp} {
		m.Tried("farm", state)
	}
	m.Tried("", job.DeliveryDelivered)
	m.Storage("put", time.Second, nil)
	m.Registry("blob", time.Second, fmt.Errorf("x: %w", errdefs.ErrNotFound))
	m.Containerd("Images/Get", time.Second, context.Canceled)
	return m
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("answered %d:\n%s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A node that is alone stands for itself.
func TestNodeAlone(t *testing.T) {
	m := New("v1", "abc")
	m.ExposeNodes(Nodes{Self: "n"})
	text := scrape(t, m)
	want(t, text, `shepherd_node_info{fleet="n",node="n"} 1`)
	if strings.Contains(text, "shepherd_node_up") || strings.Contains(text, "shepherd_lease") {
		t.Errorf("it shows nodes:\n%s", text)
	}
}

func TestValues(t *testing.T) {
	now := time.Now()
	from := &machine{waiting: []ledger.Waiting{
		{Model: job.Model{Name: "m", Version: "v1"}, Sheep: "s", Jobs: 2, Oldest: now.Add(-time.Hour)},
		{Model: job.Model{Name: "n"}, Jobs: 4, Oldest: now.Add(time.Minute)}, // clocks go back
		{Jobs: 9, Rest: true},
	}}
	text := scrape(t, all(t, from))
	want(t, text,
		`shepherd_build_info{commit="abc",goversion="`+strings.TrimSpace(goVersion(t))+`",version="v1"} 1`,
		`shepherd_jobs{state="queued"} 3`, `shepherd_jobs{state="done"} 5`, `shepherd_jobs{state="cancelled"} 0`,
		`shepherd_queue_jobs{model="m:v1",sheep="s"} 2`, `shepherd_queue_jobs{model="n",sheep=""} 4`, `shepherd_queue_jobs{model="other",sheep="other"} 9`,
		`shepherd_queue_oldest_age_seconds{model="n",sheep=""} 0`,
		`shepherd_tenant_held_jobs{tenant="wool"} 3`, `shepherd_tenant_held_jobs{tenant=""} 1`, `shepherd_tenant_used_gpu_seconds{tenant="wool"} 90`,
		`shepherd_limit_held_jobs{models="llama*"} 3`, `shepherd_limit_max_jobs{models="llama*"} 4`,
		`shepherd_node_info{fleet="a",node="b"} 1`, `shepherd_lease_renewals_late_total 2`,
		`shepherd_node_up{node="a"} 0`, `shepherd_node_up{node="b"} 1`, `shepherd_node_drained{node="a"} 1`, `shepherd_node_drained{node="b"} 0`,
		`shepherd_node_held_jobs{node="b"} 3`, `shepherd_node_models{node="b",where="loaded"} 1`, `shepherd_node_models{node="a",where="disk"} 5`,
		`shepherd_webhook_waiting_messages{receiver="farm"} 3`, `shepherd_webhook_waiting_messages{receiver="jobs"} 2`,
		`shepherd_webhook_tries_total{receiver="farm",result="failed"} 2`, `shepherd_webhook_tries_total{receiver="jobs",result="given_up"} 0`,
		`shepherd_sheep_up{sheep="busy",type="bare"} 1`, `shepherd_sheep_busy{sheep="busy",type="bare"} 1`, `shepherd_sheep_up{sheep="off",type="docker"} 0`,
		`shepherd_jobs_ended_total{sheep="s",state="done"} 1`,
		`shepherd_job_phase_duration_seconds_bucket{phase="queued",result="ok",sheep="s",le="1"} 0`,
		`shepherd_job_phase_duration_seconds_bucket{phase="queued",result="ok",sheep="s",le="5"} 1`,
		`shepherd_job_phase_duration_seconds_count{phase="run",result="failed",sheep="s"} 1`,
		`shepherd_job_phase_duration_seconds_count{phase="run",result="error",sheep="s"} 1`,
		`shepherd_runner_crashes_total{sheep="s"} 1`, `shepherd_model_switches_total{sheep="s"} 1`,
		`shepherd_storage_request_duration_seconds_sum{operation="put",result="ok"} 1`,
		`shepherd_registry_request_duration_seconds_count{operation="blob",result="not_found"} 1`,
		`shepherd_containerd_call_duration_seconds_count{operation="Images/Get",result="cancelled"} 1`,
		`shepherd_disk_used_bytes{purpose="stage_ahead"} 7`, `shepherd_disk_budget_bytes{purpose="stage_ahead"} 9`,
		`shepherd_disk_used_bytes{purpose="images"} 11`, `shepherd_disk_budget_bytes{purpose="images"} 12`,
	)
	age := regexp.MustCompile(`shepherd_queue_oldest_age_seconds\{model="m:v1",sheep="s"\} 36\d\d`)
	if !age.MatchString(text) || strings.Contains(text, `oldest_age_seconds{model="other"`) || strings.Contains(text, `folder="gone"`) {
		t.Error(text)
	}
}

func goVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// A ledger that is away leaves the rest to be seen.
func TestLedgerAway(t *testing.T) {
	text := scrape(t, all(t, &machine{err: errors.New("away")}))
	if strings.Contains(text, "shepherd_jobs{") || !strings.Contains(text, "shepherd_sheep_up{") || !strings.Contains(text, "go_goroutines") {
		t.Error(text)
	}
}

// Clients choose models, but not how many series there are.
func TestSeriesAreBounded(t *testing.T) {
	from := &machine{}
	for i := range 1000 {
		from.waiting = append(from.waiting, ledger.Waiting{Model: job.Model{Name: fmt.Sprint("m", i)}, Jobs: 1, Oldest: time.Now()})
	}
	if n := strings.Count(scrape(t, all(t, from)), "shepherd_queue_jobs{"); n != kinds {
		t.Errorf("%d series, want %d", n, kinds)
	}
}

func TestClasses(t *testing.T) {
	for want, err := range map[string]error{
		"ok": nil, "cancelled": context.Canceled, "timeout": context.DeadlineExceeded, "not_found": errdefs.ErrNotFound,
		"exists": errdefs.ErrAlreadyExists, "denied": errdefs.ErrPermissionDenied, "unauthenticated": errdefs.ErrUnauthenticated,
		"invalid": errdefs.ErrInvalidArgument, "out_of_range": errdefs.ErrOutOfRange, "precondition": errdefs.ErrFailedPrecondition,
		"exhausted": errdefs.ErrResourceExhausted, "unavailable": errdefs.ErrUnavailable, "error": errors.New("x"),
	} {
		if err != nil {
			err = fmt.Errorf("doing: %w", err)
		}
		if got := class(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}

// Another part's metrics are shown beside these; the same twice is an error.
func TestRegister(t *testing.T) {
	m := New("v1", "abc")
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "shepherd_part_bytes", Help: "A part's."})
	if err := m.Register(gauge); err != nil {
		t.Fatal(err)
	}
	if err := m.Register(gauge); err == nil {
		t.Error("registered twice")
	}
	want(t, scrape(t, m), "shepherd_part_bytes 0")
}

// TestLint asks promtool what it thinks of every metric there is.
func TestLint(t *testing.T) {
	cmd := exec.Command(testenv.Command(t, "promtool", "prometheus"), "check", "metrics", "--extended")
	cmd.Stdin = strings.NewReader(scrape(t, all(t, &machine{waiting: []ledger.Waiting{{Jobs: 1, Oldest: time.Now()}}})))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDocumented compares the table in docs/metrics.md with the metrics there
// are: names, types and labels.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(shepherd_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllSubmatch(text, -1) {
		labels := strings.Fields(string(bytes.ReplaceAll(m[3], []byte("`"), nil)))
		slices.Sort(labels)
		documented[string(m[1])] = string(m[2]) + fmt.Sprint(labels)
	}
	families, err := all(t, &machine{waiting: []ledger.Waiting{{Jobs: 1, Oldest: time.Now()}}}).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "shepherd_") {
			continue
		}
		labels := []string{}
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		shown[f.GetName()] = strings.ToLower(f.GetType().String()) + fmt.Sprint(labels)
	}
	if !maps.Equal(documented, shown) {
		for name := range documented {
			if documented[name] != shown[name] {
				t.Errorf("%s is documented as %s and shown as %s", name, documented[name], shown[name])
			}
		}
		for name := range shown {
			if documented[name] == "" {
				t.Errorf("%s (%s) is not documented in docs/metrics.md", name, shown[name])
			}
		}
	}
}

// BenchmarkJob is what the metrics of a job cost.
func BenchmarkJob(b *testing.B) {
	m := New("v1", "abc")
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		for _, phase := range []shepherd.Phase{shepherd.PhaseQueued, shepherd.PhaseStage, shepherd.PhaseRun, shepherd.PhaseCollect} {
			m.PhaseEnded(shepherd.PhaseResult{Phase: phase, Sheep: "s", Began: now, Ended: now})
		}
		m.Waited("s", time.Millisecond)
		m.Ended("s", job.Done)
		for _, op := range []string{"make_bucket", "put", "list", "put", "put", "get"} {
			m.Storage(op, time.Millisecond, nil)
		}
	}
}
