package e2e

import (
	"encoding/hex"
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestMetrics makes a daemon count everything that it can, and compares its metrics with the
// documentation, the alert rules and the dashboard.
func TestMetrics(t *testing.T) {
	p := newContainerWorld(t)
	w := p.world
	w.edit("  bare_sheep:", "  idle_sheep: {type: bare, working_directory: "+w.dir+"/models}\n  bare_sheep:")
	w.start()
	on := []string{"sheep_id", "bare_sheep"}
	w.submit("job-done", "echo:v1", "x", on...)
	w.expectDone("job-done", "x")
	w.submit("job-other", "echo:v2", "x", on...)
	w.expectDone("job-other", "x")
	w.submit("job-fail", "echo:v2", "fail", on...)
	w.expectFailed("job-fail")
	w.submit("job-exit", "echo:v2", "exit 3", on...)
	w.expectFailed("job-exit")
	w.eventually("the runner is started again", func() bool {
		return strings.Contains(w.metrics(), `shepherd_runner_restarts_total{sheep="bare_sheep"} 1`)
	})
	w.submit("job-image", "echo:v1", "print x", "sheep_id", "dock")
	if s := w.await("job-image"); s.Status != "done" {
		t.Fatalf("%+v", s)
	}
	// One runs, one is prepared, two wait.
	gate := w.dir + "/gate"
	w.submit("job-runs", "echo:v2", "wait "+gate, on...)
	w.submit("job-next", "echo:v2", "x", on...)
	w.submit("job-late", "echo:v2", "x", on...)
	w.submit("job-later", "echo:v2", "x", on...)
	w.eventually("two jobs wait, and one runs", func() bool {
		text := w.metrics()
		return strings.Contains(text, `shepherd_queue_jobs{model="echo:v2",sheep="bare_sheep"} 2`) && strings.Contains(text, `shepherd_jobs{state="processing"} 1`)
	})
	before := w.metrics()
	for _, want := range []string{
		`shepherd_jobs_ended_total{sheep="bare_sheep",state="done"} 2`, `shepherd_jobs_ended_total{sheep="bare_sheep",state="failed"} 2`,
		`shepherd_jobs{state="queued"} 3`, `shepherd_model_switches_total{sheep="bare_sheep"} 1`, `shepherd_runner_crashes_total{sheep="bare_sheep"} 1`,
		`shepherd_sheep_up{sheep="bare_sheep",type="bare"} 1`, `shepherd_sheep_busy{sheep="bare_sheep",type="bare"} 1`, `shepherd_sheep_up{sheep="idle_sheep",type="bare"} 0`,
		`shepherd_job_phase_duration_seconds_count{phase="run",result="failed",sheep="bare_sheep"} 1`, `shepherd_job_phase_duration_seconds_count{phase="pull",result="ok",sheep="dock"} 1`,
		`shepherd_registry_request_duration_seconds_count{operation="blob",result="ok"}`, `shepherd_containerd_call_duration_seconds_count{operation="Containers/Create",result="ok"} 1`,
		`shepherd_filesystem_free_bytes{folder="storage"}`, `shepherd_disk_used_bytes{purpose="images"}`,
	} {
		if !strings.Contains(before, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if strings.Contains(before, "job-") {
		t.Error("the metrics name a job")
	}
	w.kill()
	w.start()
	write(t, gate, "")
	for _, id := range []string{"job-runs", "job-next", "job-late", "job-later"} {
		if s := w.await(id); s.Status != "done" {
			t.Errorf("%s: %+v", id, s)
		}
	}
	w.eventually("the metrics show what became of the jobs", func() bool {
		text := w.metrics()
		return strings.Contains(text, `shepherd_runner_adoptions_total{sheep="bare_sheep"} 1`) && strings.Contains(text, `shepherd_jobs_returned_total{sheep="bare_sheep"}`) &&
			strings.Contains(text, "shepherd_runner_idle_seconds_count")
	})
	after := w.metrics()
	for _, text := range []string{before, after} {
		cmd := exec.Command(testenv.Command(t, "promtool", "prometheus"), "check", "metrics")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	}

	shown := map[string]bool{"up": true} // Prometheus' own
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)[{ ]`).FindAllStringSubmatch(before+after, -1) {
		shown[m[1]] = true
	}
	for name := range shown {
		family := name
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && shown[base+"_bucket"] {
				family = base
			}
		}
		if strings.HasPrefix(name, "shepherd_") && !strings.Contains(read(t, "../../docs/metrics.md"), "| `"+family+"` |") {
			t.Errorf("%s is not in docs/metrics.md", family)
		}
	}
	for _, file := range []string{"../../contrib/prometheus/shepherd.rules.yml", "../../contrib/grafana/shepherd.json"} {
		names := regexp.MustCompile(`\b(shepherd|process|go)_[a-z_]+[a-z]\b`).FindAllString(expressions(t, file), -1)
		if len(names) < 10 {
			t.Errorf("%s names only %v", file, names)
		}
		for _, name := range names {
			elsewhere := strings.HasPrefix(name, "shepherd_gpu_") || strings.HasPrefix(name, "shepherd_node_") || strings.HasPrefix(name, "shepherd_lease_")
			if !shown[name] && !elsewhere { // TestSharedGPU and TestFleet check those
				t.Errorf("%s asks for %s, which a daemon does not show", file, name)
			}
		}
	}
}

// expressions are the queries in a file of rules or a dashboard.
func expressions(t *testing.T, file string) string {
	t.Helper()
	text := read(t, file)
	if !strings.HasSuffix(file, ".json") {
		return text[strings.Index(text, "groups:"):]
	}
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all.WriteString(target.Expr + "\n")
		}
	}
	return all.String()
}

func (w *world) metrics() string {
	w.t.Helper()
	code, text := w.request("GET", "/metrics", "")
	if code != 200 {
		w.t.Fatalf("metrics: %d %s", code, text)
	}
	return text
}

// TestTrace follows one trace from its client to the upload of the results, with
// the daemon killed in the middle: the runner gets the id of its span, and has the trace from
// its start.
func TestTrace(t *testing.T) {
	receiver := testenv.StartOTLP(t)
	w := newWorld(t)
	w.env = append(w.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+receiver.URL, "OTEL_SERVICE_NAME=flock", "OTEL_BSP_SCHEDULE_DELAY=50")
	w.start()
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	w.header = map[string]string{"traceparent": "00-" + trace + "-" + parent + "-01", "tracestate": "vendor=1"}
	gate := w.dir + "/gate"
	w.submit("job-traced", "echo:v1", "trace "+gate)
	w.header = nil
	w.eventually("the spans up to the runner's start are sent", func() bool {
		return receiver.Span("submit") != nil && receiver.Span("queued") != nil && receiver.Span("stage") != nil && receiver.Span("load") != nil
	})
	w.eventually("the runner has the job", func() bool { return len(w.noted("job")) == 1 })
	w.kill()
	w.start()
	write(t, gate, "")
	if s := w.await("job-traced"); s.Status != "done" {
		t.Fatalf("%+v", s)
	}
	w.eventually("the spans of the end are sent", func() bool { return receiver.Span("run") != nil && receiver.Span("collect") != nil })

	var names []string
	submit := receiver.Span("submit")
	for _, s := range receiver.Spans() {
		names = append(names, s.Name)
		above := submit.SpanId
		if s.Name == "submit" {
			above = unhex(t, parent)
		}
		if !slices.Equal(s.TraceId, unhex(t, trace)) || !slices.Equal(s.ParentSpanId, above) || s.TraceState != "vendor=1" {
			t.Errorf("%s does not belong below its parent: %v", s.Name, s)
		}
	}
	slices.Sort(names)
	if want := []string{"collect", "load", "pull", "queued", "run", "stage", "submit"}; !slices.Equal(slices.Compact(names), want) {
		t.Errorf("the spans are %v, want %v", names, want)
	}
	if got := receiver.Resource("service.name"); got != "flock" {
		t.Errorf("the service is called %q", got)
	}
	told := strings.Fields(w.result("job-traced"))
	if len(told) != 3 || told[0] != told[1] || told[2] != "vendor=1" {
		t.Fatalf("the runner was told %q", told)
	}
	if fields := strings.Split(told[1], "-"); fields[1] != trace || !slices.Equal(unhex(t, fields[2]), receiver.Span("run").SpanId) {
		t.Errorf("the runner was told %s, its span is %x", told[1], receiver.Span("run").SpanId)
	}

	// The client does not trace this one: the daemon begins a trace itself.
	w.submit("job-own", "echo:v1", "trace")
	if s := w.await("job-own"); s.Status != "done" || strings.Contains(w.result("job-own"), " 00-"+trace) {
		t.Errorf("%+v", s)
	}
}

// Without a receiver nothing is traced; a client's trace still reaches the runner.
func TestTraceIsHandedOn(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_SDK_DISABLED=true")
	w.start()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	w.header = map[string]string{"traceparent": parent}
	w.submit("job-traced", "echo:v1", "trace")
	w.expectDone("job-traced", parent+" "+parent)
	w.header = nil
	w.submit("job-untraced", "echo:v1", "trace")
	w.expectFailed("job-untraced", "FileNotFoundError") // there is no trace to read
	if strings.Contains(w.log.String(), "spans") {
		t.Errorf("the log tells of spans:\n%s", w.log)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
