// Package metrics counts what the daemon does and shows it to Prometheus.
//
// What happens is counted as it happens: Metrics is the core's Observer, and has
// a function for each part that talks to others (storage, the image registry,
// containerd). What is, is looked up when it is asked for: see Expose. No label
// has a value that clients choose but a job's priority, of which only so many are
// told apart; jobs' ids are in no metric.
//
// Every metric is described in docs/metrics.md; a test keeps the two together.
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

// Metrics are the daemon's metrics, in a registry of their own. It is ready to
// be told what happens from the start; its methods may be called from any number
// of goroutines.
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

// The buckets, in seconds. Phases last from milliseconds to hours, a runner's
// idle gap should be less than one, and requests take from half a millisecond to
// a minute.
var (
	phaseBuckets   = []float64{.001, .005, .02, .1, .5, 1, 5, 15, 60, 300, 1200, 3600, 4 * 3600}
	idleBuckets    = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 10}
	requestBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
)

// New makes the metrics of a daemon of this version, built from this commit.
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
		Namespace: "shepherd", Name: "build_info", Help: "What the daemon was built from; the value is 1.",
	}, []string{"version", "commit", "goversion"})
	build.WithLabelValues(version, commit, runtime.Version()).Set(1)
	m.registry.MustRegister(build)

	m.ended = counter("jobs_ended_total", "Jobs that came into a final state, by the sheep that had them.", "sheep", "state")
	m.returned = counter("jobs_returned_total", "Jobs that a sheep handed back to the queue.", "sheep")
	m.phases = histogram("job_phase_duration_seconds", "How long jobs were in each phase of their way.", phaseBuckets, "sheep", "phase", "result")
	m.idle = histogram("runner_idle_seconds", "How long runners waited between two jobs of which the second was there already.", idleBuckets, "sheep")
	for event, of := range map[shepherd.RunnerEvent]struct{ name, help string }{
		shepherd.RunnerStarted:  {"runner_starts_total", "Runners that were started, for whatever reason."},
		shepherd.RunnerSwitched: {"model_switches_total", "Runners that were stopped to make room for another model."},
		shepherd.RunnerCrashed:  {"runner_crashes_total", "Runners that ended though nobody had asked them to."},
		shepherd.RunnerRevived:  {"runner_restarts_total", "Runners that were started again after a crash, before a job wanted them."},
		shepherd.RunnerAdopted:  {"runner_adoptions_total", "Runners that were found alive when the daemon started."},
	} {
		m.runners[event] = counter(of.name, of.help, "sheep")
	}
	m.refused = counter("api_requests_refused_total", "Requests of the API that were not let in: unknown (who asked), forbidden (to them) or limited (in their rate).", "why")
	for _, why := range []string{"unknown", "forbidden", "limited"} {
		m.refused.WithLabelValues(why)
	}
	m.messages = counter("webhook_tries_total", "Tries to send a message to a receiver of webhooks, by what became of it.", "receiver", "result")
	m.storage = histogram("storage_request_duration_seconds", "How long requests to storage took, by what came of them.", requestBuckets, "operation", "result")
	m.images = histogram("registry_request_duration_seconds", "How long requests to the image registry took, by what came of them.", requestBuckets, "operation", "result")
	m.containerd = histogram("containerd_call_duration_seconds", "How long calls of containerd took, by what came of them.", requestBuckets, "operation", "result")
	return m
}

// Register adds the metrics of another part, which are called shepherd_PART_….
func (m *Metrics) Register(c prometheus.Collector) error { return m.registry.Register(c) }

// Handler serves the metrics. What cannot be looked up is left out of an answer,
// which is one all the same.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// PhaseEnded implements shepherd.Observer.
func (m *Metrics) PhaseEnded(p shepherd.PhaseResult) {
	m.phases.WithLabelValues(p.Sheep, string(p.Phase), outcome(p.Err)).Observe(p.Ended.Sub(p.Began).Seconds())
}

// outcome is how a phase ended. A runner that answers that the job failed has
// ended its phase well enough for a duration, but not for the job.
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

// Refused counts a request of the API that was not let in; see api.Config.
func (m *Metrics) Refused(why string) { m.refused.WithLabelValues(why).Inc() }

// Receiver shows a configured receiver of webhooks before it was sent anything; the
// empty name is for those that jobs name.
func (m *Metrics) Receiver(name string) {
	for _, result := range []string{"delivered", "failed", "given_up"} {
		m.messages.WithLabelValues(shownReceiver(name), result)
	}
}

// Tried counts a try to send a message; see webhook.Config.
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

// shownReceiver is a receiver as metrics have it: those that jobs name are one.
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

// Storage is told of requests to storage.
func (m *Metrics) Storage(op string, took time.Duration, err error) {
	observe(m.storage, op, took, err)
}

// Registry is told of requests to the image registry.
func (m *Metrics) Registry(op string, took time.Duration, err error) {
	observe(m.images, op, took, err)
}

// Containerd is told of calls of containerd.
func (m *Metrics) Containerd(op string, took time.Duration, err error) {
	observe(m.containerd, op, took, err)
}

func observe(h *prometheus.HistogramVec, op string, took time.Duration, err error) {
	h.WithLabelValues(op, class(err)).Observe(took.Seconds())
}

// classes are the classes of errors as labels show them. The first that fits is
// taken.
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

// class is what a label shows of an error.
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
