package remote

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/client"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%v: it is\n%s\nand is to be\n%s", err, got, want)
	}
}

// noon is when the made-up flock is looked at.
var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// madeUp is a flock with a sheep in every state.
func madeUp() (client.Flock, client.GPUList) {
	at := func(ago time.Duration) *string { return new(noon.Add(-ago).Format("2006-01-02T15:04:05.000000")) }
	model := func(name, version string) client.Model { return client.Model{Name: &name, Version: &version} }
	flock := client.Flock{
		Sheep: []client.FlockSheep{
			{Name: "bitzer", Condition: client.Blocked, Detail: new("GPU 3 is out: Xid 79")},
			{Name: "dolly", Condition: client.Able, Running: true, Model: model("transcribe", "large-v3"), Job: new("scan-1"), StartedAt: at(70 * time.Second), RunningSince: at(65 * time.Second), Usual: &client.Usual{Likely: 90}, Progress: &client.Progress{Done: 0.42, Text: new("page 42")}},
			{Name: "drying", Condition: client.Drained, Running: true, Model: model("m", "v1"), Job: new("last"), StartedAt: at(time.Second)},
			{Name: "羊", Condition: client.Drained, Detail: new("told to take no more jobs")},
			{Name: "loading", Condition: client.Able, Job: new("evil\x1b[31m"), StartedAt: at(3 * time.Second), Detail: new("pulling\nx: 43 %")},
			{Name: "ready", Condition: client.Able, Running: true, Model: model("segment", "v2")},
			{Name: "rests", Condition: client.Resting, Detail: new("rests for 12s: no space left on device")},
			{Name: "timmy", Condition: client.Able},
		},
		Queue: client.FlockQueue{
			Total: 14, More: true, Models: []client.QueueGroup{{Name: "transcribe:large-v3", Jobs: 12}, {Name: "segment:v2", Jobs: 2}},
			Head: []client.QueuedJob{
				{JobId: "scan-2", Model: model("transcribe", "large-v3"), Priority: 5, Position: new(1), Reason: new("It waits for a sheep: it is number 1 in the queue."), ExpectedStart: &client.Estimate{Likely: at(-25 * time.Second)}},
				{JobId: "later", Model: model("segment", "v2"), Reason: new("Sheep `bitzer` cannot run it.")},
			},
		},
	}
	const gib = 1 << 30
	gpus := client.GPUList{
		Trouble: new("the driver is slow"),
		Gpus: []client.GPU{
			{Index: 0, Name: "NVIDIA H100", Memory: 80 * gib, Used: 33 * gib, Utilization: new(93), Temperature: new(61), Health: "ok", Sheep: []client.DeviceUser{{Name: "dolly"}, {Name: "ready"}}},
			{Index: 3, Name: "NVIDIA H100", Memory: 80 * gib, Health: client.Out, Detail: new("it fell off the bus")},
		},
	}
	return flock, gpus
}

// The screen fits its size, scrolls, and tells by words what it tells by colours.
func TestTopScreen(t *testing.T) {
	flock, gpus := madeUp()
	v := topView{now: func() time.Time { return noon }}
	var b strings.Builder
	show := func(title string, width, height, first int) {
		fmt.Fprintf(&b, "== %s, %d×%d\n%s\n", title, width, height, v.screen(width, height, &first))
	}
	show("nothing is known", 60, 5, 0)
	v.take(client.FlockChange{Lost: errors.New("connection refused")})
	show("no daemon", 60, 5, 0)
	v.take(client.FlockChange{Flock: &flock})
	show("a tenant's", 100, 40, 0)
	v.take(client.FlockChange{GPUs: &gpus})
	show("all", 120, 40, 0)
	show("narrow", 70, 40, 0)
	show("narrow and low", 50, 8, 0)
	show("scrolled to the end", 50, 8, 1000)
	v.lost = errors.New("EOF")
	v.now = func() time.Time { return noon.Add(90 * time.Second) }
	show("away", 60, 3, 0)
	golden(t, "top.txt", b.String())

	v.colour = true
	first := 0
	coloured := v.screen(120, 40, &first)
	if !strings.Contains(coloured, "\x1b[31mout ") || strings.Contains(coloured, "evil\x1b[31m") {
		t.Errorf("in colours it is %q", coloured)
	}
}

// flockServer serves a flock as a stream that goes on.
func flockServer(t *testing.T, flock client.Flock, gpus client.GPUList) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /session", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"name": "boss", "scopes": ["read"], "tenant": null}`)
	})
	mux.HandleFunc("GET /flock", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		var body bytes.Buffer
		for name, value := range map[string]any{"flock": flock, "gpus": gpus} {
			fmt.Fprintf(&body, "event: %s\ndata: ", name)
			if err := PrintJSON(&body, value, false); err != nil {
				t.Error(err)
			}
			body.WriteString("\n")
		}
		_, _ = w.Write(body.Bytes())
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

// Without a terminal, top prints how things are and ends.
func TestTopOnce(t *testing.T) {
	flock, gpus := madeUp()
	server := flockServer(t, flock, gpus)
	var out bytes.Buffer
	cmd := topCommand(Config{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--server", server.URL})
	cmd.SetOut(&out)
	cmd.SetIn(strings.NewReader(""))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"8 sheep  1 out  1 working", "14+ waiting", "2 GPUs", "the driver is slow"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("it is coloured: %q", out.String())
	}
}
