// Package runner is the SDK for writing runners in Go: programs that load a model and
// process shepherd's jobs with it, one by one.
//
// A runner's main function calls Main with a function that loads the model and returns a
// handler for jobs:
//
//	func main() {
//		runner.Main(func(ctx context.Context, args runner.Args) (runner.Handler, error) {
//			model, err := digits.Load(filepath.Join(filepath.Dir(args.ConfigPath), "weights.bin"))
//			if err != nil {
//				return nil, err
//			}
//			return func(ctx context.Context, j runner.Job) error {
//				image, err := os.ReadFile(j.Input())
//				if err != nil {
//					return err
//				}
//				return os.WriteFile(j.Output(), model.Predict(image), 0o644)
//			}, nil
//		})
//	}
//
// The program has the command line of shepherd-runner, so it can be the entry point of a
// model's image, or the command of a bare sheep. Serve is for programs with another command
// line.
package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// DefaultPort is the TCP port on which a runner listens by default.
const DefaultPort = 9999

// Job is one job. Its inputs are complete, and its output directory exists and
// is empty. Every file in the output directory, at any depth, becomes a result.
type Job struct {
	ID        string
	InputDir  string
	OutputDir string
	// Trace identifies the span of the job's run, the parent of the handler's own
	// spans; zero if the job is not traced.
	Trace job.Trace

	send func(messenger.Event) // nil if events are not sent
}

// Progress reports how much of the job is done, from 0 to 1, with a description. It may be
// called as often as needed, from any goroutine: reports that follow each other too
// quickly are dropped.
func (j Job) Progress(done float64, text string) {
	if j.send != nil {
		j.send(messenger.Event{Kind: messenger.EventProgress, JobID: job.ID(j.ID), Progress: done, Text: text})
	}
}

// Log adds a line to the job's log: it prints the line, because a runner's output during a
// job is that job's log, and sends it to clients that follow the job.
func (j Job) Log(line string) {
	fmt.Println(line)
	j.Printed(line)
}

// Printed is Log for a line that was printed already, for example by a program that the
// handler runs.
func (j Job) Printed(line string) {
	if j.send != nil {
		j.send(messenger.Event{Kind: messenger.EventLog, JobID: job.ID(j.ID), Text: line})
	}
}

// Input is the path of the job's default input, the payload of its request.
func (j Job) Input() string { return filepath.Join(j.InputDir, job.DefaultInput) }

// Output is the path of the job's default output, which clients get that request the
// result without naming a file.
func (j Job) Output() string { return filepath.Join(j.OutputDir, job.DefaultOutput) }

// Handler processes one job; nil means that its outputs are complete. An error fails the
// job and is reported to its client; a *job.Failure in its chain is reported as it is. A
// panic is treated like an error, and the runner continues. ctx ends when the runner is
// asked to stop and, with the cause ErrCancelled, when the job is cancelled.
type Handler func(ctx context.Context, j Job) error

// ErrCancelled is the cause with which the context of a cancelled job's handler ends. The
// job then counts as cancelled if the handler returns any error.
var ErrCancelled = errors.New("the job was cancelled")

// EnvHost is the environment variable with the address to bind. Shepherd sets it to a
// loopback address, so that runners cannot be reached from the network.
const EnvHost = "SHEPHERD_RUNNER_HOST"

// Config configures Serve.
type Config struct {
	// Host is the address to bind. The default is the value of EnvHost, or 0.0.0.0 if
	// that is not set.
	Host string
	// Port is the TCP port to bind; the default is DefaultPort.
	Port int
	// Events is true if events are sent to shepherd, which may also cancel jobs. The
	// default depends on the environment variable messenger.EnvFeatures, which
	// shepherd sets and the original shepherd does not.
	Events bool
	// Log receives the beginning and end of jobs, and invalid messages; the default is
	// slog.Default().
	Log *slog.Logger
}

// Serve binds the runner's socket and gives the handler one job at a time until ctx ends;
// then it waits for the handler to return and returns nil. The handler's context ends with
// ctx. A job for which the handler then returns an error is not answered, so that shepherd
// gives it to another runner. An error means that the socket could not be bound.
//
// A job that is sent again while it waits or is under way is not processed twice; all of
// its senders get the answer.
func Serve(ctx context.Context, cfg Config, h Handler) error {
	if cfg.Host == "" {
		cfg.Host = cmp.Or(os.Getenv(EnvHost), "0.0.0.0")
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if slices.Contains(strings.Fields(os.Getenv(messenger.EnvFeatures)), messenger.FeatureEvents) {
		cfg.Events = true
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	router, err := zmq.Listen(ctx, zmq.RouterConfig{
		Endpoint: "tcp://" + net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)),
		Identity: "runner",
		Log:      cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("start the runner: %w; is another runner using the port?", err)
	}
	defer router.Close()
	cfg.Log.Info("waiting for jobs", "address", router.Addr().String())
	s := &server{router: router, log: cfg.Log, handle: h, events: cfg.Events}
	s.run(ctx)
	return nil
}

// maxWaiting is how many jobs may be queued. Shepherd sends one at a time; further jobs of
// other clients are answered with a failure.
const maxWaiting = 1000

// answerTimeout is how long a client may take to read its answer.
const answerTimeout = 30 * time.Second

// server is a running Serve. Its fields are used by run's goroutine only.
type server struct {
	router *zmq.Router
	log    *slog.Logger
	handle Handler
	events bool
	tasks  []*task // oldest first
	busy   bool    // the first is under way
}

// task is a job and its senders.
type task struct {
	in        messenger.Input
	senders   []*zmq.Peer
	cancel    context.CancelCauseFunc // set while the job is under way
	cancelled bool
}

func (s *server) run(ctx context.Context) {
	received := make(chan zmq.Message)
	ended := make(chan error)
	var receiving sync.WaitGroup
	receiving.Go(func() {
		for {
			m, err := s.router.Recv(ctx)
			if err != nil {
				return
			}
			select {
			case received <- m:
			case <-ctx.Done():
				return
			}
		}
	})
	defer receiving.Wait()
	for {
		select {
		case m := <-received:
			s.take(ctx, m)
			s.start(ctx, ended)
		case err := <-ended:
			s.finish(ctx, err)
			s.start(ctx, ended)
		case <-ctx.Done():
			if s.busy {
				s.log.Info("stopping; waiting for the job under way", "job", s.tasks[0].in.JobID)
				s.finish(ctx, <-ended)
			}
			return
		}
	}
}

// take handles a message, which may be a new task.
func (s *server) take(ctx context.Context, m zmq.Message) {
	if id, err := messenger.DecodeCancel(m.Frame); err == nil {
		if s.busy && s.tasks[0].in.JobID == id {
			s.log.Info("cancelling job", "job", id)
			s.tasks[0].cancelled = true
			s.tasks[0].cancel(ErrCancelled)
		}
		return
	}
	in, err := messenger.DecodeInput(m.Frame)
	if err != nil {
		s.log.Warn("ignored a message", "error", err)
		return
	}
	for _, t := range s.tasks {
		if t.in.JobID == in.JobID {
			if !slices.Contains(t.senders, m.From) {
				t.senders = append(t.senders, m.From)
			}
			return
		}
	}
	t := &task{in: in, senders: []*zmq.Peer{m.From}}
	if len(s.tasks) > maxWaiting {
		s.answer(ctx, t, &job.Failure{Message: fmt.Sprintf("the runner has %d jobs waiting already", maxWaiting)})
		return
	}
	s.tasks = append(s.tasks, t)
}

// start starts the first task, if there is one and it is not under way.
func (s *server) start(ctx context.Context, ended chan<- error) {
	if s.busy || len(s.tasks) == 0 || ctx.Err() != nil {
		return
	}
	s.busy = true
	t := s.tasks[0]
	in := t.in
	ctx, t.cancel = context.WithCancelCause(ctx)
	s.log.Info("job begins", "job", in.JobID)
	place := filepath.Join(in.IODataRoot, string(in.JobID))
	j := Job{ID: string(in.JobID), InputDir: filepath.Join(place, job.InputDir), OutputDir: filepath.Join(place, job.OutputDir)}
	if text, err := os.ReadFile(filepath.Join(place, job.TraceFile)); err == nil { // most jobs have none
		_ = j.Trace.UnmarshalText(text)
	}
	if s.events {
		j.send = s.eventSender(ctx, slices.Clone(t.senders))
		j.send(messenger.Event{Kind: messenger.EventAccepted, JobID: in.JobID, Features: []string{messenger.FeatureCancel}})
	}
	go func() {
		err := error(errGone)
		defer func() { ended <- err }()
		defer func() {
			if p := recover(); p != nil {
				err = newPanic(p)
			}
		}()
		err = s.handle(ctx, j)
	}()
}

// progressInterval is the shortest time between two progress events of a job.
const progressInterval = 100 * time.Millisecond

// eventTimeout is how long sending an event may block the handler.
const eventTimeout = time.Second

// thinning drops progress events of a job that follow each other too quickly. It may be
// used from any goroutine.
type thinning struct {
	mu   sync.Mutex
	last time.Time // of the last progress event that passed
}

// passes reports whether an event is to be sent. The end of the progress always is.
func (t *thinning) passes(e messenger.Event) bool {
	if e.Kind != messenger.EventProgress || e.Progress >= 1 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.last) < progressInterval {
		return false
	}
	t.last = time.Now()
	return true
}

// eventSender returns a function that sends events to a job's senders.
func (s *server) eventSender(ctx context.Context, senders []*zmq.Peer) func(messenger.Event) {
	var kept thinning
	return func(e messenger.Event) {
		if !kept.passes(e) {
			return
		}
		frame, err := messenger.EncodeEvent(e)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
		defer cancel()
		for _, sender := range senders {
			_ = s.router.Send(ctx, sender, frame) // fails if the sender has disconnected
		}
	}
}

// finish answers the first task, which ended with err.
func (s *server) finish(ctx context.Context, err error) {
	t := s.tasks[0]
	t.cancel(nil)
	s.tasks, s.busy = s.tasks[1:], false
	switch {
	case err != nil && t.cancelled && ctx.Err() == nil:
		s.log.Info("job cancelled", "job", t.in.JobID, "error", err)
		s.answer(ctx, t, &job.Failure{Message: messenger.CancelledType + ": " + ErrCancelled.Error(), Type: messenger.CancelledType})
	case err == nil:
		s.log.Info("job done", "job", t.in.JobID)
		s.answer(ctx, t, nil)
	case ctx.Err() != nil:
		s.log.Info("job interrupted", "job", t.in.JobID, "error", err)
	default:
		s.log.Error("job failed", "job", t.in.JobID, "error", err)
		s.answer(ctx, t, failureOf(err))
	}
}

// answer sends the answer to all of the job's senders.
func (s *server) answer(ctx context.Context, t *task, f *job.Failure) {
	frame, err := messenger.EncodeAnswer(messenger.Answer{JobID: t.in.JobID, Failure: f})
	if err != nil {
		s.log.Error("cannot write the answer", "job", t.in.JobID, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	for _, sender := range t.senders {
		if err := s.router.Send(ctx, sender, frame); err != nil {
			s.log.Warn("could not deliver an answer", "job", t.in.JobID, "error", err)
		}
	}
}
