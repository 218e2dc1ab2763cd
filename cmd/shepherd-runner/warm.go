package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
)

// resident is a command that stays up, in a process group of its own.
type resident struct {
	m     *model
	group *group
	child *child
	out   *output

	mu   sync.Mutex
	each func(from stream, line string) // called for each line of its output; may be nil
}

// startResident starts the model's command to stay up. stdin, which may be nil, becomes
// its standard input and is closed here.
func (m *model) startResident(stdin *os.File, env ...string) (*resident, error) {
	if stdin != nil {
		defer stdin.Close()
	}
	u := &resident{m: m}
	u.out = newOutput(func(from stream, line string) {
		u.mu.Lock()
		each := u.each
		u.mu.Unlock()
		if each != nil {
			each(from, line)
		}
	})
	g, err := m.children.newGroup()
	if err != nil {
		return nil, err
	}
	cmd := m.service(m.args)
	cmd.Env = append(cmd.Env, env...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if err := u.out.attach(cmd); err != nil {
		g.kill()
		return nil, err
	}
	u.group = g
	u.child, err = g.start(cmd)
	u.out.started()
	if err != nil {
		g.kill()
		u.out.close()
		return nil, err
	}
	return u, nil
}

// during sets the function that is called for each line of the output.
func (u *resident) during(each func(from stream, line string)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.each = each
}

// failed returns the error of a command that has exited.
func (u *resident) failed() error {
	u.group.kill()
	u.out.end()
	err := failure(u.child.status, u.out.stderr.String())
	if err == nil {
		err = &job.Failure{Message: "CommandFailed: it ended", Type: "CommandFailed", Traceback: logtext.Clean(u.out.stderr.String())}
	}
	return err
}

// stop stops the command. It may have ended.
func (u *resident) stop() {
	u.group.stop(u.child, u.m.stopSignal)
	u.out.close()
}

// warm sends jobs to a command that stays up: for each job it writes one line of JSON to
// the command's standard input, {"job": …, "inputs": …, "outputs": …}, and reads one line
// of JSON from its standard output, an object. The job has failed if the object has an
// "error"; "type" and "traceback" are then part of the failure. Other lines are log lines.
// A command that has ended is started again for the next job.
type warm struct {
	m       *model
	running *resident // nil while it is not up
	stdin   *os.File
}

// warmAnswer is a command's answer to a job.
type warmAnswer struct {
	Job       string  `json:"job"`
	Error     *string `json:"error"`
	Type      string  `json:"type"`
	Traceback string  `json:"traceback"`
}

// parseAnswer parses a line of a command's output that may be its answer. The first part of an
// object that is too long is the answer that it is.
func parseAnswer(line string) (a warmAnswer, ok bool) {
	switch {
	case !strings.HasPrefix(line, "{"):
		return a, false
	case json.Unmarshal([]byte(line), &a) == nil:
		return a, true
	case len(line) < lineSize || !strings.HasPrefix(strings.TrimLeft(line[1:], " \t"), `"`):
		return a, false
	}
	problem := fmt.Sprintf("the command's answer is longer than %d bytes", lineSize)
	return warmAnswer{Error: &problem}, true
}

func newWarm(m *model) (*warm, error) {
	w := &warm{m: m}
	return w, w.start()
}

func (w *warm) start() error {
	r, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	running, err := w.m.startResident(r)
	if err != nil {
		stdin.Close()
		return fmt.Errorf("start the command: %w", err)
	}
	w.running, w.stdin = running, stdin
	return nil
}

func (w *warm) stop() {
	if w.running != nil {
		w.stdin.Close() // a command that reads lines ends at EOF
		w.running.stop()
		w.running = nil
	}
}

// process sends the command one job. See runner.Handler.
func (w *warm) process(ctx context.Context, j runner.Job) error {
	ctx, cancel := w.m.bounded(ctx)
	defer cancel()
	if w.running != nil {
		select {
		case <-w.running.child.exited: // it ended after the last job
			w.stop()
		default:
		}
	}
	if w.running == nil {
		if err := w.start(); err != nil {
			return err
		}
	}
	answers := make(chan warmAnswer, 1)
	w.running.during(func(from stream, line string) {
		if a, ok := parseAnswer(line); ok && from == stdout && (a.Job == "" || a.Job == j.ID) {
			select {
			case answers <- a:
			default: // further answers are ignored
			}
			return
		}
		sendLine(j, line)
	})
	running := w.running
	defer running.during(nil)
	defer running.out.settle() // so that all output of this job is in its log
	request, err := json.Marshal(map[string]string{"job": j.ID, "inputs": j.InputDir, "outputs": j.OutputDir})
	if err != nil {
		return err
	}
	if _, err := w.stdin.Write(append(request, '\n')); err != nil && !errors.Is(err, os.ErrClosed) {
		// The command has closed its input, or has ended, which is handled below.
		if !ended(w.running) {
			w.stop()
			return fmt.Errorf("send the job to the command: %w", err)
		}
	}
	select {
	case a := <-answers:
		return a.failure()
	case <-w.running.child.exited:
		err := w.running.failed()
		select {
		case a := <-answers: // it answered before it ended
			err = a.failure()
		default:
		}
		w.stop()
		return err
	case <-ctx.Done():
		stderr := w.running.out.stderr
		w.stop() // the contract has no other way to cancel a job
		return w.m.stopped(ctx, stderr.String())
	}
}

func ended(u *resident) bool {
	select {
	case <-u.child.exited:
		return true
	default:
		return false
	}
}

func (a *warmAnswer) failure() error {
	if a.Error == nil {
		return nil
	}
	f := &job.Failure{Message: *a.Error, Type: a.Type, Traceback: a.Traceback}
	if f.Message == "" {
		f.Message = "the command reported an error without a message"
	}
	return f
}
