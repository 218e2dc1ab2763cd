// Package runner is for people who write runners: the programs that hold a
// model and process shepherd's jobs with it, one by one.
//
// A runner is a main function that calls Main with a function that loads the
// model and returns what is done with each job:
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
// Built as a program it has the command line of shepherd-runner, so it can be
// the entry point of a model's image, or the command of a bare sheep. Serve is
// for programs with a command line of their own.
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

// DefaultPort is where a runner listens when nothing else is said.
const DefaultPort = 9999

// Job is one job. Its inputs are complete, and its output directory exists and
// is empty. Every file in the output directory, at any depth, becomes a result.
type Job struct {
	ID        string
	InputDir  string
	OutputDir string
	// Trace is what the job's run is called in its trace, for the handler's own
	// spans to be below it; zero where the job is in none.
	Trace job.Trace

	tell func(messenger.Event) // nil where nobody is to be told
}

// Progress tells how much of the job is done, from 0 to 1, and at what it is. It
// may be called as often as one likes, from any goroutine: what nobody could read
// is left out.
func (j Job) Progress(done float64, text string) {
	if j.tell != nil {
		j.tell(messenger.Event{Kind: messenger.EventProgress, JobID: job.ID(j.ID), Progress: done, Text: text})
	}
}

// Log adds a line to the job's log: it is printed, since what a runner prints while
// it has a job is that job's log, and told to whoever watches.
func (j Job) Log(line string) {
	fmt.Println(line)
	j.Printed(line)
}

// Printed is Log for a line that is printed already, as by a program that the
// handler runs.
func (j Job) Printed(line string) {
	if j.tell != nil {
		j.tell(messenger.Event{Kind: messenger.EventLog, JobID: job.ID(j.ID), Text: line})
	}
}

// Input is the path of the job's default input, the payload of its request.
func (j Job) Input() string { return filepath.Join(j.InputDir, job.DefaultInput) }

// Output is the path of the job's default output, what a client gets that asks
// for the result without naming a file.
func (j Job) Output() string { return filepath.Join(j.OutputDir, job.DefaultOutput) }

// Handler processes one job; nil means that its outputs are complete. An error
// fails the job and is told to its client; a *job.Failure in its chain is told
// as it is. A panic is an error like any other: the runner goes on. Ctx ends
// when the runner is asked to stop, and, with the cause ErrCancelled, when the job
// is to be given up.
type Handler func(ctx context.Context, j Job) error

// ErrCancelled is the cause of the end of a handler's context whose job was
// cancelled. An error that the handler then returns is told as that.
var ErrCancelled = errors.New("the job was cancelled")

// EnvHost is the variable that has the address to bind. Shepherd sets it for
// runners that share the machine's network, so that nobody else reaches them.
const EnvHost = "SHEPHERD_RUNNER_HOST"

// Config says where a runner listens.
type Config struct {
	// Host is the address to bind; the default is what the environment says by
	// EnvHost, and without that all of them, 0.0.0.0.
	Host string
	// Port is the TCP port to bind; the default is DefaultPort.
	Port int
	// Events says that shepherd is told the handler's events, and may cancel jobs.
	// The default is what the environment says: shepherd's shim understands them,
	// the original shepherd does not.
	Events bool
	// Log is told about jobs, and about messages that are not understood; the
	// default is slog.Default().
	Log *slog.Logger
}

// Serve binds the runner's socket and gives the handler one job at a time,
// until ctx ends; then it waits for the handler to return and returns nil. The
// handler's context ends with ctx; a job it gave up for that is not answered,
// for shepherd to give it to another runner. An error means that the socket
// could not be bound.
//
// Whoever asks for a job that waits or is under way already is answered with
// the others who did when it is done; it is not done twice.
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

// maxWaiting is how many jobs may wait for their turn. Shepherd sends one at a
// time; another client is told that it sends too many.
const maxWaiting = 1000

// answerTimeout bounds how long a client may take to read its answer.
const answerTimeout = 30 * time.Second

// server is a runner at work. All of it belongs to the goroutine in run.
type server struct {
	router *zmq.Router
	log    *slog.Logger
	handle Handler
	events bool
	tasks  []*task // by age
	busy   bool    // the first is under way
}

// task is a job and those who asked for it.
type task struct {
	in     messenger.Input
	askers []*zmq.Peer
	cancel context.CancelCauseFunc // while it is under way
	gone   bool                    // it was cancelled
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

// take reads a message, which may bring a new task.
func (s *server) take(ctx context.Context, m zmq.Message) {
	if id, err := messenger.DecodeCancel(m.Frame); err == nil {
		if s.busy && s.tasks[0].in.JobID == id {
			s.log.Info("job is to be given up", "job", id)
			s.tasks[0].gone = true
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
			if !slices.Contains(t.askers, m.From) {
				t.askers = append(t.askers, m.From)
			}
			return
		}
	}
	t := &task{in: in, askers: []*zmq.Peer{m.From}}
	if len(s.tasks) > maxWaiting {
		s.answer(ctx, t, &job.Failure{Message: fmt.Sprintf("the runner has %d jobs waiting already", maxWaiting)})
		return
	}
	s.tasks = append(s.tasks, t)
}

// start begins the first task, if there is one and it is not under way.
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
	if text, err := os.ReadFile(filepath.Join(place, job.TraceFile)); err == nil { // as a rule there is none
		_ = j.Trace.UnmarshalText(text)
	}
	if s.events {
		j.tell = s.eventSender(ctx, slices.Clone(t.askers))
		j.tell(messenger.Event{Kind: messenger.EventAccepted, JobID: in.JobID, Features: []string{messenger.FeatureCancel}})
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

// progressInterval is how often progress is told, at most.
const progressInterval = 100 * time.Millisecond

// eventTimeout bounds how long a handler waits for an event to be sent.
const eventTimeout = time.Second

// eventSender returns what sends events to those who asked for a job.
func (s *server) eventSender(ctx context.Context, askers []*zmq.Peer) func(messenger.Event) {
	var mu sync.Mutex
	var last time.Time
	return func(e messenger.Event) {
		if e.Kind == messenger.EventProgress && e.Progress < 1 {
			mu.Lock()
			early := time.Since(last) < progressInterval
			if !early {
				last = time.Now()
			}
			mu.Unlock()
			if early {
				return
			}
		}
		frame, err := messenger.EncodeEvent(e)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
		defer cancel()
		for _, asker := range askers {
			_ = s.router.Send(ctx, asker, frame) // it may have left
		}
	}
}

// finish answers the first task, which ended with err.
func (s *server) finish(ctx context.Context, err error) {
	t := s.tasks[0]
	t.cancel(nil)
	s.tasks, s.busy = s.tasks[1:], false
	switch {
	case err != nil && t.gone && ctx.Err() == nil:
		s.log.Info("job given up", "job", t.in.JobID, "error", err)
		s.answer(ctx, t, &job.Failure{Message: messenger.CancelledType + ": " + ErrCancelled.Error(), Type: messenger.CancelledType})
	case err == nil:
		s.log.Info("job done", "job", t.in.JobID)
		s.answer(ctx, t, nil)
	case ctx.Err() != nil:
		s.log.Info("job given up", "job", t.in.JobID, "error", err)
	default:
		s.log.Error("job failed", "job", t.in.JobID, "error", err)
		s.answer(ctx, t, failureOf(err))
	}
}

// answer tells everyone who asked. Those who have left asked for nothing more.
func (s *server) answer(ctx context.Context, t *task, f *job.Failure) {
	frame, err := messenger.EncodeAnswer(messenger.Answer{JobID: t.in.JobID, Failure: f})
	if err != nil {
		s.log.Error("cannot write the answer", "job", t.in.JobID, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	for _, asker := range t.askers {
		if err := s.router.Send(ctx, asker, frame); err != nil {
			s.log.Warn("could not deliver an answer", "job", t.in.JobID, "error", err)
		}
	}
}
