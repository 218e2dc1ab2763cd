package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// kinds bounds the number of distinct series of waiting jobs (by model and sheep), because
// clients choose the models and addresses.
const kinds = 64

// lookTime bounds how long collecting may take.
const lookTime = 5 * time.Second

// Sources are read when the metrics are scraped.
type Sources struct {
	Core interface {
		Sheep(ctx context.Context) []job.Sheep
		StageBudget() (used, limit int64)
	}
	Ledger interface {
		Count(ctx context.Context) (ledger.Counts, error)
		Waiting(ctx context.Context, most int) ([]ledger.Waiting, error)
		Load(ctx context.Context) (ledger.Load, error)
	}
	// Webhooks returns the undelivered webhook messages; nil if no webhooks are configured.
	Webhooks interface {
		Undelivered(ctx context.Context) ([]ledger.Backlog, error)
	}
	// Policy is the ledger's policy. Its limits and usage are exposed if it bounds claims.
	Policy ledger.Policy
	// Images returns the disk space of pulled images and its limit, 0 for none; ok is false
	// while unknown. Nil without container sheep.
	Images func(ctx context.Context) (used, limit int64, ok bool)
	// Folders are the directories whose file systems are exposed, by purpose.
	Folders map[string]string
}

// Expose registers the metrics that are read from sources. It is called once.
func (m *Metrics) Expose(s Sources) {
	name := func(name string) string { return "shepherd_" + name }
	m.registry.MustRegister(&collector{
		sources: s,
		jobs:    prometheus.NewDesc(name("jobs"), "Jobs in the ledger by state. Jobs that have ended are counted until their records expire.", []string{"state"}, nil),
		waiting: prometheus.NewDesc(name("queue_jobs"), "Jobs that can be claimed, by model and the sheep that they are addressed to.", []string{"model", "sheep"}, nil),
		oldest:  prometheus.NewDesc(name("queue_oldest_age_seconds"), "Seconds since the oldest job that can be claimed was submitted, by model and sheep.", []string{"model", "sheep"}, nil),
		up:      prometheus.NewDesc(name("sheep_up"), "1 if the sheep has a runner, else 0.", []string{"sheep", "type"}, nil),
		busy:    prometheus.NewDesc(name("sheep_busy"), "1 if the sheep has a job, else 0.", []string{"sheep", "type"}, nil),
		budget:  prometheus.NewDesc(name("disk_budget_bytes"), "Bound on the disk space for a purpose in bytes; 0 for none.", []string{"purpose"}, nil),
		used:    prometheus.NewDesc(name("disk_used_bytes"), "Disk space used for a purpose in bytes.", []string{"purpose"}, nil),
		free:    prometheus.NewDesc(name("filesystem_free_bytes"), "Bytes available to the daemon in the file system of a directory.", []string{"folder"}, nil),
		size:    prometheus.NewDesc(name("filesystem_size_bytes"), "Size in bytes of the file system of a directory.", []string{"folder"}, nil),

		messages:   prometheus.NewDesc(name("webhook_waiting_messages"), "Webhook messages that wait to be delivered, by receiver.", []string{"receiver"}, nil),
		delivery:   prometheus.NewDesc(name("webhook_oldest_age_seconds"), "Seconds since the oldest waiting webhook message was queued, by receiver.", []string{"receiver"}, nil),
		tenantHeld: prometheus.NewDesc(name("tenant_held_jobs"), "Jobs of the tenant that are held by sheep of all nodes. Only with configured limits or shares.", []string{"tenant"}, nil),
		tenantUsed: prometheus.NewDesc(name("tenant_used_gpu_seconds"), "GPU time used by the tenant in seconds, which halves with each share_half_life. Only with fair_share.", []string{"tenant"}, nil),
		limitHeld:  prometheus.NewDesc(name("limit_held_jobs"), "Held jobs of the models of a limit, on all nodes.", []string{"models"}, nil),
		limitMax:   prometheus.NewDesc(name("limit_max_jobs"), "Limit on the held jobs of the models, on all nodes.", []string{"models"}, nil),
	})
}

type collector struct {
	sources Sources

	jobs, waiting, oldest, up, busy, budget, used, free, size *prometheus.Desc
	messages, delivery                                        *prometheus.Desc
	tenantHeld, tenantUsed, limitHeld, limitMax               *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.jobs, c.waiting, c.oldest, c.up, c.busy, c.budget, c.used, c.free, c.size, c.messages, c.delivery, c.tenantHeld, c.tenantUsed, c.limitHeld, c.limitMax} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if counts, err := c.sources.Ledger.Count(ctx); err != nil {
		to <- prometheus.NewInvalidMetric(c.jobs, err)
	} else {
		for _, state := range []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled} {
			gauge(c.jobs, float64(counts[state]), string(state))
		}
	}
	if waiting, err := c.sources.Ledger.Waiting(ctx, kinds); err != nil {
		to <- prometheus.NewInvalidMetric(c.waiting, err)
	} else {
		now := time.Now()
		for _, w := range waiting {
			model, sheep := w.Model.String(), w.Sheep
			if w.Rest {
				model, sheep = "other", "other"
			}
			gauge(c.waiting, float64(w.Jobs), model, sheep)
			if !w.Oldest.IsZero() {
				gauge(c.oldest, max(now.Sub(w.Oldest).Seconds(), 0), model, sheep)
			}
		}
	}
	if c.sources.Webhooks != nil {
		if waiting, err := c.sources.Webhooks.Undelivered(ctx); err != nil {
			to <- prometheus.NewInvalidMetric(c.messages, err)
		} else {
			now := time.Now()
			for _, b := range waiting {
				gauge(c.messages, float64(b.Messages), shownReceiver(b.Receiver))
				gauge(c.delivery, max(now.Sub(b.Oldest).Seconds(), 0), shownReceiver(b.Receiver))
			}
		}
	}
	if c.sources.Policy.BoundsClaims() {
		c.collectLoad(ctx, to, gauge)
	}
	for _, s := range c.sources.Core.Sheep(ctx) {
		gauge(c.up, number(s.Running), s.Name, s.Type)
		gauge(c.busy, number(s.Job != ""), s.Name, s.Type)
	}
	used, limit := c.sources.Core.StageBudget()
	gauge(c.used, float64(used), "stage_ahead")
	gauge(c.budget, float64(limit), "stage_ahead")
	if c.sources.Images != nil {
		if used, limit, ok := c.sources.Images(ctx); ok {
			gauge(c.used, float64(used), "images")
			gauge(c.budget, float64(limit), "images")
		}
	}
	for purpose, folder := range c.sources.Folders {
		var fs unix.Statfs_t
		if err := unix.Statfs(folder, &fs); err != nil {
			continue // not created yet, or removed; reported elsewhere
		}
		gauge(c.free, float64(fs.Bavail)*float64(fs.Bsize), purpose)
		gauge(c.size, float64(fs.Blocks)*float64(fs.Bsize), purpose)
	}
}

// collectLoad exposes the usage that the policy considers.
func (c *collector) collectLoad(ctx context.Context, to chan<- prometheus.Metric, gauge func(d *prometheus.Desc, value float64, labels ...string)) {
	load, err := c.sources.Ledger.Load(ctx)
	if err != nil {
		to <- prometheus.NewInvalidMetric(c.tenantHeld, err)
		return
	}
	held := map[string]int{}
	for _, h := range load.Held {
		held[h.Tenant] += h.Jobs
	}
	for tenant, n := range held {
		gauge(c.tenantHeld, float64(n), tenant)
	}
	for tenant, used := range load.Used {
		gauge(c.tenantUsed, used.Seconds(), tenant)
	}
	shown := map[string]bool{}
	for _, limit := range c.sources.Policy.Models {
		models, n := limit.Models.String(), 0
		if shown[models] {
			continue
		}
		shown[models] = true
		for _, h := range load.Held {
			if limit.Models.Matches(h.Model) {
				n += h.Jobs
			}
		}
		gauge(c.limitHeld, float64(n), models)
		gauge(c.limitMax, float64(limit.MaxRunning), models)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
