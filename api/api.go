// Package api serves shepherd's REST API. The contract is openapi.yaml; the
// server interface and the types of its answers in api.gen.go are generated
// from it, and tests compare every answer with it. Routes of the original
// shepherd keep its formats and its error texts exactly.
//
// The package knows jobs only through [Service]: it reads requests, turns
// errors into answers and streams files, and decides nothing about jobs.
// [access.Gate] authenticates callers; needs.go has the scope of each operation.
package api

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

//go:generate go tool oapi-codegen -config oapi-codegen.yaml openapi.yaml
//go:generate go run ./internal/specjson openapi.yaml spec.json

// Service is what the API serves. All methods are called by many goroutines at
// once and return soon after ctx ends.
//
// Beyond the errors named below, a method returns errors classed with
// github.com/containerd/errdefs: Unavailable says that storage or the ledger
// cannot be reached. An error without a class is a fault of the daemon's and is
// answered as one.
type Service interface {
	Submissions
	UploadService
	JobService
	GroupService
	EventService
	FileService
	FlockService
	SheepOrders
}

// Submissions takes jobs in.
type Submissions interface {
	// Submit accepts a job; when it returns nil the job is durable. It returns
	// *job.Invalid, *job.UnknownSheep, *job.UnknownJob (no payload, and the
	// job's place in storage is not there), job.ErrSubmitted (the id is in use),
	// job.ErrRemoving (the last job's files are being removed), job.ErrUploading,
	// *job.QueueFull and job.ErrDraining. r.Copies is empty.
	Submit(ctx context.Context, r job.Request) error

	// SubmitFiles is Submit for a job that has no payload, whose inputs are the files,
	// which are read to their end or the first error, and those that r.Copies names.
	// The id must be new. An error of files is returned, wrapped.
	SubmitFiles(ctx context.Context, r job.Request, files job.Files) error

	// SubmitAll is Submit for several jobs, all of them or none; r.Copies may not be
	// empty. An error about one of them is a *job.ItemError with one of Submit's or
	// SubmitFiles'.
	SubmitAll(ctx context.Context, rs []job.Request) error
}

// UploadService has clients put inputs into storage by themselves. A tenant that is empty is
// any.
type UploadService interface {
	// BeginUpload reserves the place of a job that is not submitted yet, and says where its
	// inputs go. It returns *job.Invalid, *job.NoUploads, job.ErrSubmitted, job.ErrRemoving,
	// job.ErrUploading, *job.QueueFull and job.ErrDraining.
	BeginUpload(ctx context.Context, r job.UploadRequest) (job.UploadPlan, error)

	// UploadAddresses says what is missing, and where it goes. It returns job.ErrNoUpload,
	// job.ErrUploadOver and *job.NoUploads.
	UploadAddresses(ctx context.Context, id job.ID, tenant string, to job.UploadAddressing) (job.UploadPlan, error)

	// CompleteUpload sees that all files are there. It returns job.ErrNoUpload,
	// job.ErrUploadOver and *job.UploadIncomplete.
	CompleteUpload(ctx context.Context, id job.ID, tenant string) (job.UploadPlan, error)

	// GiveUpUpload removes an upload. It returns job.ErrNoUpload, job.ErrUploading, and
	// job.ErrRemovalContinues where that takes long; after another error, too, the removal
	// may go on by itself.
	GiveUpUpload(ctx context.Context, id job.ID, tenant string) error

	// UploadOrigin is the origin of the addresses that UploadAddresses makes for a host, empty
	// where it makes none.
	UploadOrigin(host string) string
}

// GroupService looks at groups of jobs, of a tenant, or of all where that is empty, and
// changes their course. The error is job.ErrNoGroup where there is no such group.
type GroupService interface {
	Group(ctx context.Context, id, tenant string) (job.Group, error)

	// CancelGroup is Cancel for the jobs that have not ended.
	CancelGroup(ctx context.Context, id, tenant string) error

	// RetryGroup is Retry for the jobs that failed or were cancelled.
	RetryGroup(ctx context.Context, id, tenant string, trace job.Trace) error
}

// JobService looks at jobs and changes their course.
type JobService interface {
	// Job is the job's present state, or *job.UnknownJob.
	Job(ctx context.Context, id job.ID) (job.Status, error)

	// View is the job in detail, or *job.UnknownJob.
	View(ctx context.Context, id job.ID) (job.View, error)

	// Jobs is up to limit jobs that match, without what job.View has only for one, in
	// the order they were submitted or, with q.Newest, in the opposite one, from the
	// cursor on (0 for the first), and the cursor to go on with, 0 at the end.
	Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error)

	// Owner is the tenant that the job belongs to, empty for none, or
	// *job.UnknownJob.
	Owner(ctx context.Context, id job.ID) (tenant string, err error)

	// Wait blocks until the job has ended and returns its final state. It
	// returns ctx's error when that ends first, and *job.UnknownJob.
	Wait(ctx context.Context, id job.ID) (job.Status, error)

	// Watch returns a channel that receives after the job has changed, until stop is
	// called.
	Watch(id job.ID) (changed <-chan struct{}, stop func())

	// Cancel requests that a job is cancelled. When it returns nil the
	// request is durable; the job may take a while to end, and may still end in
	// another way. It returns *job.UnknownJob and job.ErrEnded.
	Cancel(ctx context.Context, id job.ID) error

	// Retry runs a job that has ended again. It returns *job.UnknownJob,
	// job.ErrNothingToRetry, job.ErrForgotten, job.ErrFilesRemoved, and what Submit does.
	Retry(ctx context.Context, id job.ID, trace job.Trace) error

	// Explain says how the job stands, for people; to a tenant it tells nothing of
	// others' jobs. It returns *job.UnknownJob.
	Explain(ctx context.Context, id job.ID, tenant string) (job.Explanation, error)

	// Remove removes a job that has ended, with its files. It returns
	// *job.UnknownJob, job.ErrNotEnded, job.ErrNeeded, job.ErrRemoving, and
	// job.ErrRemovalContinues or job.ErrRemovalStopped where that takes long; after
	// another error, too, the removal may go on by itself.
	Remove(ctx context.Context, id job.ID) error
}

// EventService reads the durable log of what happens to jobs.
type EventService interface {
	// Events returns up to limit events after the cursor, in order, of one job or, where
	// id is empty, of all, of one tenant or, where that is empty, of all, and the cursor
	// to go on with. Fewer than limit are all there are. It returns job.ErrEventsGone
	// for a cursor that is too old or not the log's.
	Events(ctx context.Context, after job.Cursor, id job.ID, tenant string, limit int) ([]job.Event, job.Cursor, error)

	// EventsNow is the cursor of the latest event.
	EventsNow(ctx context.Context) (job.Cursor, error)

	// EventsChanged returns a channel that is closed when there may be an event that
	// there was not when it was called.
	EventsChanged() <-chan struct{}
}

// FileService opens jobs' files and logs.
type FileService interface {
	// Input opens one of the job's inputs, or a part of it; the caller closes
	// its Body. A part that reaches beyond the end is cut, a suffix longer than
	// the file is the whole file. It returns *job.UnknownJob, job.ErrNoFile and
	// job.ErrRange (no byte of the part is in the file).
	Input(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Output is Input for the job's results. It returns job.ErrNotReady as long
	// as the job has not ended, and *job.Failure with the client's message when
	// it ended without a result: failed or cancelled.
	Output(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Inputs lists the files that the job was submitted with, by name. It returns
	// *job.UnknownJob.
	Inputs(ctx context.Context, id job.ID) ([]job.FileInfo, error)

	// Outputs lists the job's results, by name. Its errors are those of Output.
	Outputs(ctx context.Context, id job.ID) ([]job.FileInfo, error)

	// Presign gives files that Inputs or Outputs listed, below job.InputDir or
	// job.OutputDir, addresses that are valid for a time. It returns job.ErrNoAddresses.
	Presign(ctx context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error

	// JobLogs opens what runners have written during the job's last run; the caller
	// closes it. Reading ends with io.EOF or, following, once the run has ended, or
	// with ctx's error. It returns *job.UnknownJob and job.ErrNoJobLog.
	JobLogs(ctx context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error)
}

// FlockService looks at the sheep and at the models that are kept for them.
type FlockService interface {
	// Sheep is every configured sheep.
	Sheep(ctx context.Context) []job.Sheep

	// Logs opens what a sheep's runners have written; the caller closes it.
	// Reading ends with io.EOF or, following, with ctx's error once that has
	// ended. It returns *job.UnknownSheep and job.ErrNoLog.
	Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error)

	// PullModel pulls a model and returns when it is complete. It calls report with the
	// progress, from one goroutine at a time and not after it has returned. It returns
	// *job.Invalid, *job.UnknownNode, *job.UnknownSheep, *job.Unavailable,
	// job.ErrNoModels and *job.ModelError.
	PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error

	// Models is every model that is kept. It returns *job.ModelError.
	Models(ctx context.Context) (job.KeptModels, error)

	// Usual is how long the last jobs of a model took; ok is false where none is known.
	Usual(ctx context.Context, m job.Model) (_ job.Usual, ok bool, err error)

	// RemoveModel removes one, of a node or, where that is empty, of all. It returns
	// *job.Invalid, *job.UnknownNode, *job.Unavailable, *job.ModelNeeded,
	// job.ErrNoModels and *job.ModelError, of class NotFound when it is not kept.
	RemoveModel(ctx context.Context, m job.Model, node string) error

	// Checks is the state of everything the daemon depends on, each by its
	// name.
	Checks(ctx context.Context) []job.Check
}

// Webhooks sends messages about jobs to receivers.
type Webhooks interface {
	// Deliveries returns up to limit messages that match, the newest first, from the
	// cursor on (0 for the first), and the cursor to go on with, 0 at the end.
	Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error)

	// Redeliver sends a message again; where tenant is not empty it must be its. It
	// returns job.ErrNoMessage.
	Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error)

	// JobSecret is what messages are signed with for the receivers that jobs of the
	// tenant name, as text; empty where jobs may name none.
	JobSecret(tenant string) (string, error)
}

// Defaults of a Config.
const (
	DefaultMaxBody     = 64 << 20
	DefaultMaxWait     = 24 * time.Hour
	DefaultBodyMemory  = 256 << 20
	DefaultMaxUpload   = 16 << 30
	DefaultUploadStall = time.Minute
)

// Config is what a handler is made of. Only Service is required.
type Config struct {
	Service Service
	// Gate authenticates callers. Nil lets everyone submit and read, and nobody
	// administer, as the zero Gate does.
	Gate *access.Gate
	// Browsers are the rules for web pages; nil allows no page of another origin.
	Browsers *Browsers
	// Refused, if not nil, is called for every request that was refused, for
	// metrics, with the reason: "unknown" (not authenticated), "forbidden" or "limited".
	Refused func(why string)
	// MaxBody bounds a request's body, in bytes; 0 means DefaultMaxBody. A
	// start-job request is held in memory whole, and its payload is part of it.
	MaxBody int64
	// BodyMemory bounds the memory, in bytes, that the bodies of all requests take
	// together; requests beyond it are answered 503. 0 means DefaultBodyMemory.
	// It is at least twice MaxBody: a body is copied while it grows.
	BodyMemory int64
	// MaxUpload bounds the body of a request that brings a job's inputs as files, and
	// what they take unpacked, in bytes; 0 means DefaultMaxUpload.
	MaxUpload int64
	// UploadStall is how long such a request may bring nothing before it ends; 0 means
	// DefaultUploadStall.
	UploadStall time.Duration
	// MaxWait bounds one wait_ready request; 0 means DefaultMaxWait.
	MaxWait time.Duration
	// Debug includes runners' tracebacks and the causes of the daemon's own errors in
	// answers.
	Debug bool
	// GPUs is what is known of the GPUs of a node, or of this machine where node is
	// empty; nil where there are none. It is called by many goroutines at once and
	// returns soon after ctx ends. It returns *job.UnknownNode, and *job.Unavailable for
	// a node that cannot be asked.
	GPUs func(ctx context.Context, node string) (job.GPUs, error)
	// Webhooks sends messages about jobs; nil where none are sent.
	Webhooks Webhooks
	// Metrics answers /metrics; by default there are none.
	Metrics http.Handler
	// Version and Commit are what /version answers.
	Version, Commit string
	// Log receives the daemon's own errors and, at debug level, every request.
	// Nil discards them.
	Log *slog.Logger
}

// New returns the handler of all routes. Long waits and long downloads lift the
// http.Server's read and write timeouts for themselves. When the contexts of
// requests are cancelled with job.ErrDraining as their cause, waiting clients
// are answered 503.
func New(c Config) http.Handler {
	s := &server{
		service: c.Service, maxBody: c.MaxBody, maxUpload: cmp.Or(max(c.MaxUpload, 0), DefaultMaxUpload), uploadStall: cmp.Or(max(c.UploadStall, 0), DefaultUploadStall), maxWait: c.MaxWait, debug: c.Debug,
		version: Version{Version: c.Version, Commit: c.Commit}, log: c.Log, documents: newDocuments(),
		webhooks: c.Webhooks,
		gate:     c.Gate, browsers: c.Browsers, refused: c.Refused,
		readiness: &readiness{check: c.Service.Checks},
	}
	if s.gate == nil {
		s.gate = new(access.Gate)
	}
	if s.browsers == nil {
		s.browsers = new(Browsers)
	}
	if s.refused == nil {
		s.refused = func(string) {}
	}
	if s.maxBody <= 0 {
		s.maxBody = DefaultMaxBody
	}
	if s.maxWait <= 0 {
		s.maxWait = DefaultMaxWait
	}
	s.bodies = semaphore.NewWeighted(max(cmp.Or(c.BodyMemory, DefaultBodyMemory), 2*s.maxBody+2048))
	if s.gpus = c.GPUs; s.gpus == nil {
		s.gpus = func(context.Context, string) (job.GPUs, error) { return job.GPUs{}, nil }
	}
	if s.metrics = c.Metrics; s.metrics == nil {
		s.metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		})
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s.guard(s.browsers.Protect(s.crossOrigin(s.routes())))
}

// server implements the generated ServerInterface.
type server struct {
	service     Service
	maxBody     int64
	maxUpload   int64
	uploadStall time.Duration
	bodies      *semaphore.Weighted // bytes
	maxWait     time.Duration
	debug       bool
	version     Version
	gpus        func(ctx context.Context, node string) (job.GPUs, error)
	metrics     http.Handler
	log         *slog.Logger

	webhooks Webhooks // nil where none are sent
	gate     *access.Gate
	browsers *Browsers
	refused  func(why string)

	readiness *readiness
	flock     flockWatch

	assets    map[string]bool // what the pages load, by path
	documents documents
}

var _ ServerInterface = (*server)(nil)
