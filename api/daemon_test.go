package api

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

func TestSheep(t *testing.T) {
	h := newHarness(t)
	h.expect(h.get("/status"), 200, `{"sheep": {}}`)
	h.expect(h.get("/sheep"), 200, `{"sheep": []}`)
	h.service.sheep = []job.Sheep{
		{Name: "b", Type: "docker", Running: true, Model: job.Model{Name: "m", Version: "v"}, Job: "j", Detail: "pulling, 40 %"},
		{Name: "a", Type: "bare", Model: job.Model{Name: "m"}, Condition: job.Drained},
	}
	h.expect(h.get("/status"), 200, `{"sheep": {
		"a": {"running": false, "model": {"name": "m", "version": ""}, "request": null},
		"b": {"running": true, "model": {"name": "m", "version": "v"}, "request": "j"}}}`)
	h.expect(h.get("/sheep"), 200, `{"sheep": [
		{"name": "a", "node": null, "condition": "drained", "type": "bare", "running": false, "model": {"name": "m", "version": ""}, "job": null, "detail": null},
		{"name": "b", "node": null, "condition": "able", "type": "docker", "running": true, "model": {"name": "m", "version": "v"}, "job": "j", "detail": "pulling, 40 %"}]}`)
}

func TestReadiness(t *testing.T) {
	h, told := newHarness(t), newHarness(t, debugMode)
	checks := []job.Check{{Name: "ledger"}, {Name: "storage"}}
	h.service.checks = checks
	h.expect(h.get("/readyz"), 200, `{"ready": true, "checks": {"ledger": {"ready": true, "message": null}, "storage": {"ready": true, "message": null}}}`)

	checks[1].Err = fmt.Errorf("reach /srv/storage: %w", errdefs.ErrUnavailable)
	told.service.checks = checks
	got := h.get("/readyz")
	h.expect(got, 503, `{"ready": false, "checks": {"ledger": {"ready": true, "message": null},
		"storage": {"ready": false, "message": "A service that shepherd depends on is not reachable; try again later"}}}`)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	told.expect(told.get("/readyz"), 503, `{"ready": false, "checks": {"ledger": {"ready": true, "message": null},
		"storage": {"ready": false, "message": "reach /srv/storage: unavailable"}}}`)

	checks[1].Err = errors.New("boom")
	h.expect(h.get("/readyz"), 503, `{"ready": false, "checks": {"ledger": {"ready": true, "message": null}, "storage": {"ready": false, "message": "Internal server error"}}}`)
	if lines := h.log.lines(slog.LevelError); len(lines) != 0 {
		t.Errorf("probes fill the log: %q", lines)
	}
	// Alive is another question.
	h.expect(h.get("/healthz"), 200, `{"alive": true}`)
}

func TestVersion(t *testing.T) {
	h := newHarness(t)
	h.expect(h.get("/version"), 200, `{"version": "1.2.3", "commit": "abc"}`)
}
