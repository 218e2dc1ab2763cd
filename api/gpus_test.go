package api

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

func TestGPUs(t *testing.T) {
	none := newHarness(t)
	none.expect(none.get("/gpus"), 200, `{"driver": null, "cuda": null, "trouble": null, "gpus": [], "others": []}`)

	percent, celsius, watts, errors := 93, 61, 312.5, uint64(2)
	h := newHarness(t, func(c *Config) {
		c.GPUs = func(_ context.Context, node string) (job.GPUs, error) {
			switch node {
			case "gone":
				return job.GPUs{}, &job.UnknownNode{Name: node}
			case "cut-off":
				return job.GPUs{}, &job.Unavailable{Service: "node cut-off", Problem: "does not answer", Cause: errdefs.ErrUnavailable}
			}
			return job.GPUs{
				Driver: "550.54.15", CUDA: "12.4",
				GPUs: []job.GPU{{
					UUID: "GPU-aaaa", Name: "Test A100", Memory: 80 << 30, Used: 33 << 30,
					Utilization: &percent, Power: &watts, Temperature: &celsius, ECC: &errors, Health: job.Well,
					Sheep: []job.DeviceUser{
						{Sheep: "a", Shared: true, Budget: 40 << 30, Model: job.Model{Name: "m", Version: "v1"}, Job: "j-1", Used: 30 << 30},
						{Sheep: "b", Shared: true},
					},
					Foreign: []job.Process{{PID: 4242, Name: "python3", Used: 3 << 30}},
				}, {
					Index: 1, UUID: "GPU-bbbb", Name: "Test A100", Memory: 80 << 30, Health: job.Out, Detail: "it reported Xid 79",
					Since: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Retest: time.Date(2026, 1, 2, 3, 5, 5, 6000, time.UTC),
					Sheep: []job.DeviceUser{{Sheep: "c", Device: "MIG-cccc"}},
				}},
				Others: []job.Device{{Name: "amd.com/gpu=0", Sheep: []job.DeviceUser{{Sheep: "d"}}}},
			}, nil
		}
	})
	const idle = `"model": {"name": null, "version": null}, "job": null, "used": 0`
	h.expect(h.get("/gpus"), 200, `{"driver": "550.54.15", "cuda": "12.4", "trouble": null, "gpus": [
		{"index": 0, "uuid": "GPU-aaaa", "name": "Test A100", "memory": 85899345920, "used": 35433480192,
		 "utilization": 93, "power": 312.5, "temperature": 61, "uncorrectable_errors": 2,
		 "health": "ok", "detail": null, "out_since": null, "retest_at": null,
		 "sheep": [
			{"name": "a", "instance": null, "shared": true, "budget": 42949672960, "model": {"name": "m", "version": "v1"}, "job": "j-1", "used": 32212254720},
			{"name": "b", "instance": null, "shared": true, "budget": null, `+idle+`}],
		 "foreign": [{"pid": 4242, "name": "python3", "used": 3221225472}]},
		{"index": 1, "uuid": "GPU-bbbb", "name": "Test A100", "memory": 85899345920, "used": 0,
		 "utilization": null, "power": null, "temperature": null, "uncorrectable_errors": null,
		 "health": "out", "detail": "it reported Xid 79", "out_since": "2026-01-02T03:04:05.000006", "retest_at": "2026-01-02T03:05:05.000006",
		 "sheep": [{"name": "c", "instance": "MIG-cccc", "shared": false, "budget": null, `+idle+`}], "foreign": []}],
		"others": [{"name": "amd.com/gpu=0", "sheep": [{"name": "d", "instance": null, "shared": false, "budget": null, `+idle+`}]}]}`)
	h.expect(h.get("/gpus?node=gone"), 404, `{"message": "Unknown node `+"`gone`"+`"}`)
	h.expect(h.get("/gpus?node=cut-off"), 503, `{"message": "The node cut-off does not answer; try again later"}`)
}
