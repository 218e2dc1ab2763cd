package metrics

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
)

// twoGPUs are one that is well, of which all is known, and one that is out.
func twoGPUs() job.GPUs {
	percent, celsius, watts, errors := 93, 61, 312.5, uint64(2)
	return job.GPUs{Driver: "550.54.15", GPUs: []job.GPU{{
		UUID: "GPU-aaaa", Name: "Test A100", Memory: 80, Used: 33, Health: job.Well,
		Utilization: &percent, Power: &watts, Temperature: &celsius, ECC: &errors,
		Sheep:   []job.DeviceUser{{Sheep: "s", Device: "MIG-1", Used: 30}, {Sheep: "s", Device: "MIG-2", Used: 30}},
		Foreign: []job.Process{{PID: 1, Used: 1}, {PID: 2, Used: 2}},
	}, {Index: 1, UUID: "GPU-bbbb", Name: "Test A100", Memory: 80, Health: job.Out}}}
}

func TestGPUs(t *testing.T) {
	m := New("v1", "abc")
	known := twoGPUs()
	m.GPUs(func() job.GPUs { return known })
	want(t, scrape(t, m),
		`shepherd_gpu_info{driver="550.54.15",gpu="0",name="Test A100",uuid="GPU-aaaa"} 1`,
		`shepherd_gpu_healthy{gpu="0",uuid="GPU-aaaa"} 1`, `shepherd_gpu_healthy{gpu="1",uuid="GPU-bbbb"} 0`,
		`shepherd_gpu_memory_bytes{gpu="0",uuid="GPU-aaaa"} 80`, `shepherd_gpu_memory_used_bytes{gpu="0",uuid="GPU-aaaa"} 33`,
		`shepherd_gpu_utilization_ratio{gpu="0",uuid="GPU-aaaa"} 0.93`, `shepherd_gpu_power_watts{gpu="0",uuid="GPU-aaaa"} 312.5`,
		`shepherd_gpu_temperature_celsius{gpu="0",uuid="GPU-aaaa"} 61`, `shepherd_gpu_uncorrectable_errors_total{gpu="0",uuid="GPU-aaaa"} 2`,
		`shepherd_gpu_sheep_memory_used_bytes{gpu="0",sheep="s",uuid="GPU-aaaa"} 30`, `shepherd_gpu_foreign_memory_used_bytes{gpu="0",uuid="GPU-aaaa"} 3`,
	)
	known.GPUs[0].Health = job.Unknown
	text := scrape(t, m)
	want(t, text, `shepherd_gpu_memory_bytes{gpu="0",uuid="GPU-aaaa"} 80`)
	for _, stale := range []string{`shepherd_gpu_healthy{gpu="0"`, `shepherd_gpu_memory_used_bytes{gpu="0"`, `shepherd_gpu_power_watts`} {
		if strings.Contains(text, stale) {
			t.Errorf("%s is shown though it is not known", stale)
		}
	}
}
