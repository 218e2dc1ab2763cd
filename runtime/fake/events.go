package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// runKey is the key of the *run in a Handler's context.
type runKey struct{}

// run is a runner and the job for which a Handler is called.
type run struct {
	life *life
	job  job.ID
}

// Print appends a line to the log of the sheep. ctx is the Handler's or Config.Start's.
func Print(ctx context.Context, line string) {
	if v, ok := ctx.Value(runKey{}).(*run); ok && v.life.log != nil {
		v.life.log.write(line + "\n")
	}
}

// Progress reports progress of the job. ctx is the Handler's.
func Progress(ctx context.Context, done float64, text string) {
	v, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return
	}
	v.life.mu.Lock()
	defer v.life.mu.Unlock()
	if v.life.current == v.job {
		v.life.addEvent(messenger.Event{Kind: messenger.EventProgress, JobID: v.job, Progress: done, Text: text})
	}
}

// Warn reports a warning about the runner. ctx is the Handler's.
func Warn(ctx context.Context, text string) {
	v, ok := ctx.Value(runKey{}).(*run)
	if !ok {
		return
	}
	v.life.mu.Lock()
	defer v.life.mu.Unlock()
	if v.life.current == v.job {
		v.life.warnings = append(v.life.warnings, text)
		v.life.addEvent(messenger.Event{Kind: messenger.EventWarning, JobID: v.job, Text: text})
	}
}

// addEvent adds an event. The caller holds l.mu.
func (l *life) addEvent(e messenger.Event) {
	e.Time = time.Now()
	l.events = append(l.events, e)
	close(l.changed)
	l.changed = make(chan struct{})
}

// RecvEvent waits for the next event; a new connection receives those of the job under
// way again. See messenger.EventSource.
func (c *conn) RecvEvent(ctx context.Context) (messenger.Event, error) {
	for {
		e, changed, err := c.nextEvent()
		if err != nil || e.Kind != "" {
			return e, err
		}
		select {
		case <-ctx.Done():
			return messenger.Event{}, ctx.Err()
		case <-c.closed:
			return messenger.Event{}, messenger.ErrClosed
		case <-c.life.ended:
		case <-changed:
		}
	}
}

func (c *conn) nextEvent() (messenger.Event, <-chan struct{}, error) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready {
		c.ready = true
		return messenger.Event{Kind: messenger.EventReady, Time: time.Now()}, nil, nil
	}
	if c.taken != c.life.taken {
		c.taken, c.told = c.life.taken, 0
	}
	if c.told < len(c.life.events) {
		c.told++
		return c.life.events[c.told-1], nil, nil
	}
	if c.life.exit != nil {
		return messenger.Event{}, nil, messenger.ErrClosed
	}
	return messenger.Event{}, c.life.changed, nil
}

// loggingSheep is a sheep with a log.
type loggingSheep struct{ *sheep }

func (s *loggingSheep) log() *sheepLog { return s.cfg.Runners.log(s.name) }

// Logs opens the log as it is now.
func (s *loggingSheep) Logs(context.Context, job.LogQuery) (io.ReadCloser, error) {
	text, _, _ := s.log().read(0, -1)
	return io.NopCloser(strings.NewReader(s.cfg.Log + text)), nil
}

// BeginSpan begins a span. See runtime.JobLogger.
func (s *loggingSheep) BeginSpan() string { return s.log().begin() }

// EndSpan ends a span. See runtime.JobLogger.
func (s *loggingSheep) EndSpan(span string) string { return s.log().end(span) }

// JobLogs opens a span. See runtime.JobLogger.
func (s *loggingSheep) JobLogs(ctx context.Context, span string, q job.LogQuery) (runtime.JobLog, error) {
	begin, end, err := parseSpan(span)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	log := s.log()
	if q.Tail >= 0 {
		text, _, _ := log.read(begin, end)
		lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
		begin += len(text) - len(strings.Join(lines[max(0, len(lines)-q.Tail):], ""))
		if strings.HasSuffix(text, "\n") && q.Tail > 0 {
			begin--
		}
	}
	return &spanReader{done: ctx.Done(), cause: func() error { return context.Cause(ctx) }, log: log, at: begin, end: end, follow: q.Follow && end < 0, ended: make(chan int, 1)}, nil
}

// sheepLog is the log of a sheep's runners.
type sheepLog struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed and replaced when something is written
}

// log returns the log of the sheep.
func (p *Runners) log(sheep string) *sheepLog {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.logs[sheep]
	if l == nil {
		l = &sheepLog{changed: make(chan struct{})}
		p.logs[sheep] = l
	}
	return l
}

func (l *sheepLog) write(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, text...)
	close(l.changed)
	l.changed = make(chan struct{})
}

// read returns the text between two offsets and its end; a negative end is the present
// end.
func (l *sheepLog) read(begin, end int) (string, int, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if end < 0 || end > len(l.text) {
		end = len(l.text)
	}
	begin = min(begin, end)
	return string(bytes.Clone(l.text[begin:end])), end, l.changed
}

func (l *sheepLog) begin() string {
	_, end, _ := l.read(0, -1)
	return strconv.Itoa(end)
}

func (l *sheepLog) end(span string) string {
	if span == "" || strings.Contains(span, "-") {
		return span
	}
	return span + "-" + l.begin()
}

var errSpan = errors.New("not a part of a log")

func parseSpan(span string) (begin, end int, err error) {
	from, to, ended := strings.Cut(span, "-")
	if begin, err = strconv.Atoi(from); err != nil {
		return 0, 0, errSpan
	}
	if !ended {
		return begin, -1, nil
	}
	if end, err = strconv.Atoi(to); err != nil {
		return 0, 0, errSpan
	}
	return begin, end, nil
}

// spanReader reads a span.
type spanReader struct {
	done   <-chan struct{}
	cause  func() error
	log    *sheepLog
	at     int
	end    int // negative for none
	follow bool
	ended  chan int
}

func (r *spanReader) End(span string) {
	if _, end, err := parseSpan(span); err == nil && end >= 0 {
		select {
		case r.ended <- end:
		default:
		}
	}
}

func (r *spanReader) Read(p []byte) (int, error) {
	for {
		text, _, changed := r.log.read(r.at, r.end)
		if n := copy(p, text); n > 0 {
			r.at += n
			return n, nil
		}
		if !r.follow {
			return 0, io.EOF
		}
		select {
		case <-r.done:
			return 0, r.cause()
		case r.end = <-r.ended:
			r.follow = false
		case <-changed:
		}
	}
}

func (r *spanReader) Close() error { return nil }
