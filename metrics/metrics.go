// Package metrics counts what the daemon does and exposes it to Prometheus.
//
// Events are counted as they happen: Metrics is the core's Observer, and has a method for
// each part that calls another service (storage, the image registry, containerd). State is
// read when the metrics are scraped: see Expose. No label has a value that clients choose
// freely: the number of distinct models and addresses is bounded, and job ids are in no
// metric.
//
// Every metric is described in docs/metrics.md; a test keeps the two consistent.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

// Metrics are the daemon's metrics, in their own registry. They are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	ended    *prometheus.CounterVec
	returned *prometheus.CounterVec
	phases   *prometheus.HistogramVec
	idle     *prometheus.HistogramVec
	runners  map[shepherd.RunnerEvent]*prometheus.CounterVec

	refused  *prometheus.CounterVec
	messages *prometheus.CounterVec

	storage, images, containerd *prometheus.HistogramVec
}

var _ shepherd.Observer = (*Metrics)(nil)

// The buckets, in seconds. Phases last from milliseconds to hours; a runner's idle gap
// should be below a second; requests take from half a millisecond to a minute.
var (
	phaseBuckets   = []float64{.001, .005, .02, .1, .5, 1, 5, 15, 60, 300, 1200, 3600, 4 * 3600}
	idleBuckets    = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 10}
	requestBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
)

// New creates the metrics of a daemon with this version and commit.
func New(version, commit string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), runners: make(map[shepherd.RunnerEvent]*prometheus.CounterVec)}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shepherd", Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "shepherd", Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(h)
		return h
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "shepherd", Name: "build_info", Help: "Version, commit and Go version of the daemon. The value is always 1.",
	}, []string{"version", "commit", "goversion"})
	build.WithLabelValues(version, commit, runtime.Version()).Set(1)
	m.registry.MustRegister(build)

	m.ended = counter("jobs_ended_total", "Jobs that reached a final state, by sheep and state.", "sheep", "state")
	m.returned = counter("jobs_returned_total", "Jobs that a sheep returned to the queue.", "sheep")
	m.phases = histogram("job_phase_duration_seconds", "Duration of the phases of jobs in seconds, by sheep, phase and result.", phaseBuckets, "sheep", "phase", "result")
	m.idle = histogram("runner_idle_seconds", "Seconds that runners were idle between two jobs while the second was already waiting.", idleBuckets, "sheep")
	for event, of := range map[shepherd.RunnerEvent]struct{ name, help string }{
		shepherd.RunnerStarted:  {"runner_starts_total", "Runners that were started for any reason."},
		shepherd.RunnerSwitched: {"model_switches_total", "Runners that were stopped to load another model."},
		shepherd.RunnerCrashed:  {"runner_crashes_total", "Runners that exited without being stopped."},
		shepherd.RunnerRevived:  {"runner_restarts_total", "Runners that were restarted after a crash before a job needed them."},
		shepherd.RunnerAdopted:  {"runner_adoptions_total", "Running runners that the daemon adopted when it started."},
	} {
		m.runners[event] = counter(of.name, of.help, "sheep")
	}
	m.refused = counter("api_requests_refused_total", "API requests that were refused, by reason: unknown (no valid credentials), forbidden (missing scope) or limited (rate limit).", "why")
	for _, why := range []string{"unknown", "forbidden", "limited"} {
		m.refused.WithLabelValues(why)
	}
	m.messages = counter("webhook_tries_total", "Attempts to send a webhook message, by receiver and result.", "receiver", "result")
	m.storage = histogram("storage_request_duration_seconds", "Duration of storage requests in seconds, by operation and result.", requestBuckets, "operation", "result")
	m.images = histogram("registry_request_duration_seconds", "Duration of image registry requests in seconds, by operation and result.", requestBuckets, "operation", "result")
	m.containerd = histogram("containerd_call_duration_seconds", "Duration of containerd calls in seconds, by operation and result.", requestBuckets, "operation", "result")
	return m
}

// Register adds another part's metrics, whose names begin with shepherd_PART_.
func (m *Metrics) Register(c prometheus.Collector) error { return m.registry.Register(c) }

// Handler serves the metrics. Metrics that cannot be collected are left out of the response.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// PhaseEnded implements shepherd.Observer.
func (m *Metrics) PhaseEnded(p shepherd.PhaseResult) {
	m.phases.WithLabelValues(p.Sheep, string(p.Phase), outcome(p.Err)).Observe(p.Ended.Sub(p.Began).Seconds())
}

// outcome classifies how a phase ended: "failed" is a failure that the runner reported,
// "error" any other.
func outcome(err error) string {
	var failure *job.Failure
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &failure):
		return "failed"
	}
	return "error"
}

// Ended implements shepherd.Observer.
func (m *Metrics) Ended(sheep string, state job.State) {
	m.ended.WithLabelValues(sheep, string(state)).Inc()
}

// Returned implements shepherd.Observer.
func (m *Metrics) Returned(sheep string) { m.returned.WithLabelValues(sheep).Inc() }

// Refused counts a refused request of the API; see api.Config.
func (m *Metrics) Refused(why string) { m.refused.WithLabelValues(why).Inc() }

// Receiver initializes the counters of a receiver of webhooks. The empty name stands for the
// receivers that jobs name.
func (m *Metrics) Receiver(name string) {
	for _, result := range []string{"delivered", "failed", "given_up"} {
		m.messages.WithLabelValues(shownReceiver(name), result)
	}
}

// Tried counts an attempt to send a message; see webhook.Config.
func (m *Metrics) Tried(receiver string, state job.DeliveryState) {
	result := "failed"
	switch state {
	case job.DeliveryDelivered:
		result = "delivered"
	case job.DeliveryGivenUp:
		result = "given_up"
	}
	m.messages.WithLabelValues(shownReceiver(receiver), result).Inc()
}

// shownReceiver returns the receiver's label. All receivers that jobs name share one.
func shownReceiver(name string) string { return cmp.Or(name, "jobs") }

// Runner implements shepherd.Observer.
func (m *Metrics) Runner(sheep string, event shepherd.RunnerEvent) {
	if c := m.runners[event]; c != nil {
		c.WithLabelValues(sheep).Inc()
	}
}

// Waited implements shepherd.Observer.
func (m *Metrics) Waited(sheep string, gap time.Duration) {
	m.idle.WithLabelValues(sheep).Observe(gap.Seconds())
}

// Storage records a request to storage.
func (m *Metrics) Storage(op string, took time.Duration, err error) {
	observe(m.storage, op, took, err)
}

// Registry records a request to the image registry.
func (m *Metrics) Registry(op string, took time.Duration, err error) {
	observe(m.images, op, took, err)
}

// Containerd records a call of containerd.
func (m *Metrics) Containerd(op string, took time.Duration, err error) {
	observe(m.containerd, op, took, err)
}

func observe(h *prometheus.HistogramVec, op string, took time.Duration, err error) {
	h.WithLabelValues(op, class(err)).Observe(took.Seconds())
}

// classes map classes of errors to labels. The first that matches is used.
var classes = []struct {
	is   func(error) bool
	name string
}{
	{func(err error) bool { return errors.Is(err, context.Canceled) || errdefs.IsCanceled(err) }, "cancelled"},
	{func(err error) bool {
		return errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err)
	}, "timeout"},
	{errdefs.IsNotFound, "not_found"},
	{errdefs.IsAlreadyExists, "exists"},
	{errdefs.IsPermissionDenied, "denied"},
	{errdefs.IsUnauthorized, "unauthenticated"},
	{errdefs.IsInvalidArgument, "invalid"},
	{errdefs.IsOutOfRange, "out_of_range"},
	{errdefs.IsFailedPrecondition, "precondition"},
	{errdefs.IsResourceExhausted, "exhausted"},
	{errdefs.IsUnavailable, "unavailable"},
}

// class returns the label of an error.
func class(err error) string {
	if err == nil {
		return "ok"
	}
	for _, c := range classes {
		if c.is(err) {
			return c.name
		}
	}
	return "error"
}
