package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is a program that the demo started. Its output is in a log file.
type process struct {
	name, log string
	cmd       *exec.Cmd
	exited    chan struct{}
	err       error // set when exited is closed
}

// start starts a program and returns when ready returns true for a line of its output.
func start(dir, name string, args []string, ready func(line string) bool) (*process, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(name), exited: make(chan struct{})}
	p.log = filepath.Join(dir, p.name+".log")
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	out := &output{log: log, ready: ready, served: make(chan struct{})}
	p.cmd = exec.Command(name, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.WaitDelay = time.Second                           // its children may hold its output for longer
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only the demo
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), log.Close())
	}
	go func() {
		if p.err = p.cmd.Wait(); errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		p.err = errors.Join(p.err, log.Close())
		close(p.exited)
	}()
	timeout := time.NewTimer(startTime)
	defer timeout.Stop()
	select {
	case <-out.served:
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("%s has ended: %v; its log, %s, ends with: %s", p.name, p.err, p.log, p.lastLine())
	case <-timeout.C:
		return nil, errors.Join(fmt.Errorf("%s does not serve after %v; its log is %s", p.name, startTime, p.log), p.stop())
	}
}

// output writes a program's output to its log and looks for the line that says it is ready.
type output struct {
	log    *os.File
	ready  func(line string) bool // nil after it has returned true
	served chan struct{}
	line   []byte // not ended yet
}

func (o *output) Write(b []byte) (int, error) {
	for rest := b; o.ready != nil; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		o.line = append(o.line, line...)
		if !ended {
			break
		}
		if o.ready(string(o.line)) {
			o.ready = nil
			close(o.served)
		}
		o.line, rest = o.line[:0], after
	}
	return o.log.Write(b)
}

// lastLine is the last line that the program printed.
func (p *process) lastLine() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// stop asks the program to stop and waits until it has.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(stopTime):
		return fmt.Errorf("%s does not stop; its log is %s", p.name, p.log)
	}
	if p.err != nil {
		return fmt.Errorf("%s ended with %w; its log is %s", p.name, p.err, p.log)
	}
	return nil
}
