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
	"log/slog"
	"net/http"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api/page"
	"github.com/iterait/shepherd/job"
)

//go:generate go tool oapi-codegen -config oapi-codegen.yaml openapi.yaml
//go:generate go run ./internal/specjson openapi.yaml spec.json

// Service is what the API serves. All methods are called by many goroutines at
// once and return soon after ctx ends.
//
// Beyond the errors that its comment names, a method returns errors classed with
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
	LogService
	SheepService
	ModelService
	CheckService
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
	// Nodes looks after the nodes that share the ledger; nil where it is not shared.
	Nodes NodeService
	// Webhooks sends messages about jobs; nil where none are sent.
	Webhooks Webhooks
	// Metrics answers /metrics; by default there are none.
	Metrics http.Handler
	// Version and Commit are what /version answers.
	Version, Commit string
	// Log receives the daemon's own errors and, at debug level, every request.
	// Nil discards them.
	Log *slog.Logger

	waitersInServer int // 0 means defaultWaitersInServer
}

// New returns the handler of all routes. Long waits and long downloads lift the
// http.Server's read and write timeouts for themselves. When the contexts of
// requests are cancelled with job.ErrDraining as their cause, waiting clients
// are answered 503. Many waits at a time are held by the server's heldconn.Holder,
// if it has one.
func New(c Config) http.Handler {
	c = c.withDefaults()
	answers := answers{log: c.Log, debug: c.Debug}
	gate := &gatekeeper{answers: answers, gate: c.Gate, browsers: c.Browsers, refused: c.Refused, assets: make(map[string]bool)}
	router := newRouter(newHandlers(c, answers, gate), gate, &startPage{answers: answers, gate: c.Gate, uploads: c.Service, index: page.Index()})
	return answers.guard(c.Browsers.Protect(gate.crossOrigin(router)))
}

// withDefaults is c with every field that is not given set to its default.
func (c Config) withDefaults() Config {
	if c.Gate == nil {
		c.Gate = new(access.Gate)
	}
	if c.Browsers == nil {
		c.Browsers = new(Browsers)
	}
	if c.Refused == nil {
		c.Refused = func(string) {}
	}
	if c.MaxBody <= 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.MaxWait <= 0 {
		c.MaxWait = DefaultMaxWait
	}
	c.BodyMemory = max(cmp.Or(c.BodyMemory, DefaultBodyMemory), 2*c.MaxBody+2048)
	c.MaxUpload = cmp.Or(max(c.MaxUpload, 0), DefaultMaxUpload)
	c.waitersInServer = cmp.Or(c.waitersInServer, defaultWaitersInServer)
	c.UploadStall = cmp.Or(max(c.UploadStall, 0), DefaultUploadStall)
	if c.GPUs == nil {
		c.GPUs = func(context.Context, string) (job.GPUs, error) { return job.GPUs{}, nil }
	}
	if c.Metrics == nil {
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		})
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
