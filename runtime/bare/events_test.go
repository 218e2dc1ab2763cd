package bare_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runner"
	"github.com/iterait/shepherd/runtime"
)

// sdkRunner is a model made with the SDK: its configuration says what is wrong
// with it, and its jobs go on until they are cancelled.
func sdkRunner(_ context.Context, args runner.Args) (runner.Handler, error) {
	text, err := os.ReadFile(args.ConfigPath)
	if err != nil {
		return nil, err
	}
	if len(text) > 0 {
		return nil, errors.New(string(text))
	}
	return func(ctx context.Context, j runner.Job) error {
		j.Log("halfway")
		j.Progress(0.5, "\x1b[1mhalf")
		<-ctx.Done()
		return ctx.Err()
	}, nil
}

// What a runner tells, and a cancel, go through the shim, and through another
// daemon.
func TestEventsAndCancel(t *testing.T) {
	w := newWorld(t)
	w.role = "sdk"
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	h.Run()
	h.Send("a", "")
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	event := func(want messenger.EventKind) messenger.Event {
		t.Helper()
		e, err := h.Conn.(messenger.EventSource).RecvEvent(ctx)
		if err != nil || e.Kind != want {
			t.Fatalf("got %+v, %v, want %s", e, err, want)
		}
		return e
	}
	event(messenger.EventReady)
	span := event(messenger.EventGiven).Log
	event(messenger.EventAccepted)
	if e := event(messenger.EventLog); e.Text != "halfway" {
		t.Errorf("got %+v", e)
	}
	if e := event(messenger.EventProgress); e.JobID != "a" || e.Progress != 0.5 || e.Text != "half" {
		t.Errorf("got %+v", e)
	}
	// What the SDK's Log adds is in the job's log, too.
	log, err := h.Sheep.(runtime.JobLogger).JobLogs(ctx, span, job.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() && lines.Text() != "halfway" {
	}
	if lines.Err() != nil {
		t.Error(lines.Err())
	}
	log.Close()
	h.Sheep.Detach()
	if err := h.Wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatal(err)
	}
	h = w.inherit(t)
	h.Run()
	event(messenger.EventReady)
	event(messenger.EventGiven)
	event(messenger.EventAccepted)
	if e := event(messenger.EventProgress); e.Progress != 0.5 {
		t.Errorf("a later daemon is told %+v", e)
	}
	if err := h.Conn.(messenger.Canceller).Cancel(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	a, err := h.Conn.Recv(ctx)
	if err != nil || a.JobID != "a" || a.Failure == nil || a.Failure.Type != messenger.CancelledType {
		t.Errorf("got %+v, %v", a, err)
	}
	if err := h.Conn.Ack(ctx, "a"); err != nil {
		t.Error(err)
	}
	h.StopAndClose()
}

// A model that cannot be loaded is one, and no runner that died without notice.
func TestModelThatCannotBeLoaded(t *testing.T) {
	w := newWorld(t)
	w.role = "sdk"
	w.addModel(t, model, "weights.bin is damaged")
	h := w.inherit(t)
	h.Load()
	err := h.Sheep.Run(t.Context(), runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !errdefs.IsFailedPrecondition(err) || !strings.HasPrefix(load.Message, "Cannot load model `digits:v1`: ") || !strings.Contains(load.Message, "weights.bin is damaged") {
		t.Errorf("got %v", err)
	}
	h.Close()
}

// The lines that a runner wrote during a job are told from all others.
func TestJobLogs(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	h.Run()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	spans := map[job.ID]string{}
	for _, id := range []job.ID{"a", "b"} {
		h.Send(id, fmt.Sprintf("print line of %s", id))
		a, err := h.Conn.Recv(ctx)
		if err != nil || a.JobID != id || a.Failure != nil {
			t.Fatalf("got %+v, %v", a, err)
		}
		spans[id] = a.Log
		if err := h.Conn.Ack(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	for id, span := range spans {
		r, err := h.Sheep.(runtime.JobLogger).JobLogs(ctx, span, job.LogQuery{Tail: -1})
		if err != nil {
			t.Fatalf("%q: %v", span, err)
		}
		text, err := io.ReadAll(r)
		r.Close()
		if err != nil || !strings.Contains(string(text), fmt.Sprintf("line of %s\n", id)) || strings.Count(string(text), "line of") != 1 {
			t.Errorf("the log of %s is %q, %v", id, text, err)
		}
	}
	if _, err := h.Sheep.(runtime.JobLogger).JobLogs(ctx, "nonsense", job.LogQuery{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	h.StopAndClose()
}
