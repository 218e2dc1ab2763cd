package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/internal/bounded"
	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
)

const (
	// tailSize is how many bytes at the end of a command's stderr its failure contains.
	tailSize = 4 << 10
	// lineSize is the longest line of a command's output, in bytes, that is not split. It
	// is the longest answer with contract warm.
	lineSize = 1 << 20
)

// process runs the command for one job. See runner.Handler.
func (m *model) process(ctx context.Context, j runner.Job) error {
	ctx, cancel := m.bounded(ctx)
	defer cancel()
	g, err := m.children.newGroup()
	if err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	defer m.children.endOrphans()
	defer g.kill()
	out := newOutput(func(_ stream, line string) { sendLine(j, line) })
	defer out.close()
	cmd := m.command(j)
	if err := out.attach(cmd); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	x, err := g.start(cmd)
	out.started()
	if err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	stopped := false
	select {
	case <-x.exited:
	case <-ctx.Done():
		stopped = true
		g.stop(x, m.stopSignal)
	}
	g.kill() // processes that the command left running, which may have its stderr open
	out.end()
	if stopped {
		return m.stopped(ctx, out.stderr.String())
	}
	return failure(x.status, out.stderr.String())
}

// bounded returns ctx with the model's timeout.
func (m *model) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if m.timeout > 0 {
		return context.WithTimeout(ctx, m.timeout)
	}
	return context.WithCancel(ctx)
}

// command returns the model's command for one job.
func (m *model) command(j runner.Job) *exec.Cmd {
	fill := strings.NewReplacer("{inputs}", j.InputDir, "{outputs}", j.OutputDir, "{job}", j.ID)
	args := make([]string, len(m.args))
	for i, arg := range m.args {
		args[i] = fill.Replace(arg)
	}
	cmd := m.service(args)
	cmd.Env = append(cmd.Env, "SHEPHERD_JOB_ID="+j.ID, "SHEPHERD_INPUTS="+j.InputDir, "SHEPHERD_OUTPUTS="+j.OutputDir)
	cmd.Env = append(cmd.Env, j.Trace.Environ()...)
	return cmd
}

// service returns the model's command with the given arguments.
func (m *model) service(args []string) *exec.Cmd {
	cmd := exec.Command(m.program, args...)
	cmd.Dir = m.dir
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { // these belong to the trace of the runner's start
		return strings.HasPrefix(v, "TRACEPARENT=") || strings.HasPrefix(v, "TRACESTATE=")
	})
	cmd.Env = append(own, m.env...)
	return cmd
}

// stream is one of a command's outputs.
type stream int

const (
	stdout stream = iota
	stderr
)

// output copies a command's output to this program's own output, calls a function for
// each line, and keeps the end of stderr.
type output struct {
	each   func(from stream, line string)
	stderr *bounded.Tail
	reads  []*bounded.Pipe
	writes []*os.File // the write ends for the command, until started is called
	copied chan struct{}
	copies int
}

func newOutput(each func(from stream, line string)) *output {
	return &output{each: each, stderr: bounded.NewTail(tailSize), copied: make(chan struct{}, 2)}
}

// attach makes pipes the command's stdout and stderr, and starts copying from them.
func (o *output) attach(cmd *exec.Cmd) error {
	for from, s := range []struct {
		into *io.Writer
		to   io.Writer
	}{stdout: {&cmd.Stdout, os.Stdout}, stderr: {&cmd.Stderr, io.MultiWriter(o.stderr, os.Stderr)}} {
		r, w, err := os.Pipe()
		if err != nil {
			o.close()
			return err
		}
		p := bounded.NewPipe(r)
		o.reads, o.writes = append(o.reads, p), append(o.writes, w)
		*s.into = w
		o.copies++
		go func() { // ends with the pipe, at the latest a second after end is called
			lines := bounded.NewLines(lineSize, func(line string) {
				if _, _, ok := parseProgress(line); !ok {
					_, _ = io.WriteString(s.to, line+"\n")
				}
				o.each(stream(from), line)
			})
			buffer := make([]byte, 16<<10)
			for {
				n, err := p.Read(buffer)
				_, _ = lines.Write(buffer[:n]) // never fails
				p.Done(n)
				if err != nil {
					break
				}
			}
			lines.Flush()
			o.copied <- struct{}{}
		}()
	}
	return nil
}

// started closes this process's copies of the write ends, once the command has its own.
func (o *output) started() {
	for _, w := range o.writes {
		w.Close()
	}
	o.writes = nil
}

// settle waits until the output so far has been copied, for a second at most.
func (o *output) settle() {
	by := time.Now().Add(time.Second)
	for _, r := range o.reads {
		r.Settle(by)
	}
}

// end waits until the pipes have ended, for a second at most.
func (o *output) end() {
	for _, r := range o.reads {
		_ = r.SetReadDeadline(time.Now().Add(time.Second)) // another process may still have a write end open
	}
	for ; o.copies > 0; o.copies-- {
		<-o.copied
	}
}

func (o *output) close() {
	o.started()
	o.end()
	for _, r := range o.reads {
		r.Close()
	}
}

var progressLine = regexp.MustCompile(`^::progress\s+([0-9]*\.?[0-9]+)(%?)(?:\s+(.*))?$`)

// parseProgress parses `::progress 0.4 text`.
func parseProgress(line string) (done float64, text string, ok bool) {
	m := progressLine.FindStringSubmatch(strings.TrimRight(line, "\r "))
	if m == nil {
		return 0, "", false
	}
	done, err := strconv.ParseFloat(m[1], 64)
	if m[2] == "%" {
		done /= 100
	}
	return done, m[3], err == nil
}

// sendLine sends a line of a command's output as an event. The line has been copied to
// this program's output already.
func sendLine(j runner.Job, line string) {
	if done, text, ok := parseProgress(line); ok {
		j.Progress(done, text)
		return
	}
	if line = strings.TrimRight(logtext.Clean(line), " \t"); line != "" {
		j.Printed(line)
	}
}

// stopped returns the error of a job whose command was stopped.
func (m *model) stopped(ctx context.Context, stderr string) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err() // the job was cancelled, or the runner is stopping
	}
	return &job.Failure{
		Message:   fmt.Sprintf("TimeoutError: the command ran longer than its timeout of %s", m.timeout),
		Type:      "TimeoutError",
		Traceback: logtext.Clean(stderr),
	}
}

// failure returns the failure of a job whose command has ended with the status; nil for
// success.
func failure(status syscall.WaitStatus, stderr string) error {
	if status.Exited() && status.ExitStatus() == 0 {
		return nil
	}
	how := fmt.Sprintf("exit code %d", status.ExitStatus())
	if status.Signaled() {
		how = "killed by signal " + status.Signal().String()
	}
	f := &job.Failure{Message: "CommandFailed: " + how, Type: "CommandFailed", Traceback: logtext.Clean(stderr)}
	if cause := logtext.Cause(stderr); cause != "" {
		f.Message += ": " + cause
	}
	return f
}
