package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iterait/shepherd/job"
)

// GPUs registers the metrics of the machine's GPUs. known returns their last known state
// without querying the driver. It is called once. Values that the driver does not report are
// left out.
func (m *Metrics) GPUs(known func() job.GPUs) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("shepherd_gpu_"+name, help, append([]string{"gpu", "uuid"}, labels...), nil)
	}
	m.registry.MustRegister(&gpuCollector{
		known:       known,
		info:        desc("info", "Name and driver version of the GPU. The value is always 1.", "name", "driver"),
		healthy:     desc("healthy", "1 if the GPU is healthy, 0 if it is not and runs no jobs."),
		memory:      desc("memory_bytes", "Total memory of the GPU in bytes."),
		used:        desc("memory_used_bytes", "Used memory of the GPU in bytes."),
		utilization: desc("utilization_ratio", "Fraction of the last sampling period in which the GPU was busy, 0 to 1."),
		power:       desc("power_watts", "Power draw of the GPU in watts."),
		temperature: desc("temperature_celsius", "Temperature of the GPU in degrees Celsius."),
		errors:      desc("uncorrectable_errors_total", "Uncorrectable ECC errors since the driver was loaded."),
		sheep:       desc("sheep_memory_used_bytes", "GPU memory used by the sheep's runner in bytes.", "sheep"),
		foreign:     desc("foreign_memory_used_bytes", "GPU memory used by processes that shepherd did not start, in bytes."),
	})
}

type gpuCollector struct {
	known func() job.GPUs

	info, healthy, memory, used, utilization, power, temperature, errors, sheep, foreign *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *gpuCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.info, c.healthy, c.memory, c.used, c.utilization, c.power, c.temperature, c.errors, c.sheep, c.foreign} {
		to <- d
	}
}

// Collect implements prometheus.Collector. The state of a GPU is exposed only while it is
// known: an old value would look as if the GPU still worked.
func (c *gpuCollector) Collect(to chan<- prometheus.Metric) {
	known := c.known()
	for _, g := range known.GPUs {
		show := func(d *prometheus.Desc, value float64, labels ...string) {
			kind := prometheus.GaugeValue
			if d == c.errors {
				kind = prometheus.CounterValue
			}
			to <- prometheus.MustNewConstMetric(d, kind, value, append([]string{strconv.Itoa(g.Index), g.UUID}, labels...)...)
		}
		show(c.info, 1, g.Name, known.Driver)
		show(c.memory, float64(g.Memory))
		if g.Health == job.Unknown {
			continue
		}
		show(c.healthy, number(g.Health == job.Well))
		show(c.used, float64(g.Used))
		if g.Utilization != nil {
			show(c.utilization, float64(*g.Utilization)/100)
		}
		if g.Power != nil {
			show(c.power, *g.Power)
		}
		if g.Temperature != nil {
			show(c.temperature, float64(*g.Temperature))
		}
		if g.ECC != nil {
			show(c.errors, float64(*g.ECC))
		}
		sheep := make(map[string]int64) // a sheep with several MIG instances of a GPU is listed once for each
		for _, u := range g.Sheep {
			sheep[u.Sheep] = u.Used
		}
		for name, used := range sheep {
			show(c.sheep, float64(used), name)
		}
		var foreign int64
		for _, p := range g.Foreign {
			foreign += p.Used
		}
		show(c.foreign, float64(foreign))
	}
}
