package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
)

// guardName is the name under which this program is a job's guard, see guard.
const guardName = "shepherd-runner-guard"

// grace is what a command has between TERM and KILL.
const grace = 5 * time.Second

// tailSize is how much of a command's stderr is told with its failure, in
// bytes, at most.
const tailSize = 4 << 10

// guard leads the process group of a job's command. It waits for the end of
// its input, which comes when the runner closes it or dies, however it dies,
// and kills the group and with it itself. So nothing outlives the runner.
func guard(input io.Reader) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	fmt.Println() // from here on TERM does not end it
	_, _ = io.Copy(io.Discard, input)
	_ = syscall.Kill(0, syscall.SIGKILL)
}

// group is a process group with a guard.
type group struct {
	guard *exec.Cmd
	input io.Closer
	once  sync.Once
}

func newGroup() (*group, error) {
	guard := exec.Command("/proc/self/exe")
	guard.Args = []string{guardName}
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	input, err := guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := guard.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := guard.Start(); err != nil {
		return nil, err
	}
	g := &group{guard: guard, input: input}
	if _, err := output.Read(make([]byte, 1)); err != nil {
		g.kill()
		return nil, fmt.Errorf("the guard did not start: %w", err)
	}
	return g, nil
}

// kill ends everything in the group, the guard included. It may be called more
// than once: afterwards, the group's number may be another's.
func (g *group) kill() {
	g.once.Do(func() {
		_ = syscall.Kill(-g.guard.Process.Pid, syscall.SIGKILL)
		_ = g.input.Close()
		_ = g.guard.Wait() // killed: the error says only that
	})
}

func (g *group) terminate() { _ = syscall.Kill(-g.guard.Process.Pid, syscall.SIGTERM) }

// process runs the command for one job.
func (m *model) process(ctx context.Context, j runner.Job) error {
	if m.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.timeout)
		defer cancel()
	}
	// The kernel kills the command when the thread that started it ends, so the
	// thread is kept until the command has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g, err := newGroup()
	if err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	defer g.kill()
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	defer read.Close()
	cmd := m.command(j)
	cmd.Stdout, cmd.Stderr = os.Stdout, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: g.guard.Process.Pid, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	var last tail
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(io.MultiWriter(&last, os.Stderr), read)
	}()
	stopped, err := wait(ctx, cmd, g)
	g.kill() // what the command left running, which may hold its stderr
	_ = read.SetReadDeadline(time.Now().Add(time.Second))
	<-copied
	if stopped {
		return m.stopped(ctx, last.String())
	}
	return failure(err, last.String())
}

func (m *model) command(j runner.Job) *exec.Cmd {
	fill := strings.NewReplacer("{inputs}", j.InputDir, "{outputs}", j.OutputDir)
	args := make([]string, len(m.args))
	for i, arg := range m.args {
		args[i] = fill.Replace(arg)
	}
	cmd := exec.Command(m.program, args...)
	cmd.Dir = m.dir
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { // the trace of the runner's start is another
		return strings.HasPrefix(v, "TRACEPARENT=") || strings.HasPrefix(v, "TRACESTATE=")
	})
	cmd.Env = append(append(own, m.env...),
		"SHEPHERD_JOB_ID="+j.ID, "SHEPHERD_INPUTS="+j.InputDir, "SHEPHERD_OUTPUTS="+j.OutputDir)
	cmd.Env = append(cmd.Env, j.Trace.Environ()...)
	return cmd
}

// wait waits for the command. When ctx ends first, it stops the command and
// says so, however that then exits.
func wait(ctx context.Context, cmd *exec.Cmd, g *group) (stopped bool, err error) {
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		return false, err
	case <-ctx.Done():
	}
	g.terminate()
	select {
	case <-exited:
	case <-time.After(grace):
		g.kill()
		<-exited
	}
	return true, nil
}

// stopped is what a client is told when the command was stopped.
func (m *model) stopped(ctx context.Context, stderr string) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err() // the runner is stopping
	}
	return &job.Failure{
		Message:   fmt.Sprintf("TimeoutError: the command ran longer than its timeout of %s", m.timeout),
		Type:      "TimeoutError",
		Traceback: stderr,
	}
}

// failure is what a client is told about how the command ended.
func failure(err error, stderr string) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	how := fmt.Sprintf("exit code %d", exit.ExitCode())
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		how = "killed by signal " + status.Signal().String()
	}
	f := &job.Failure{Message: "CommandFailed: " + how, Type: "CommandFailed", Traceback: stderr}
	if line := lastLine(stderr); line != "" {
		f.Message += ": " + line
	}
	return f
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// tail keeps the last lines of what is written to it.
type tail struct{ last []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p[max(0, len(p)-tailSize):]...)
	if extra := len(t.last) - tailSize; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	return len(p), nil
}

// String leaves out the beginning that was cut within a line.
func (t *tail) String() string {
	last := t.last
	if len(last) == tailSize {
		if i := bytes.IndexByte(last, '\n'); i >= 0 {
			last = last[i+1:]
		}
	}
	return strings.ToValidUTF8(string(last), "\ufffd")
}
