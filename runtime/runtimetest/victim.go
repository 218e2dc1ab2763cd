package runtimetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// VictimMain acts as a daemon that a test kills: it calls the sheep's Recover, loads the
// model, and executes the commands on standard input, one a line, each answered by a line.
// It never returns.
//
//	       → recovered BOOL   whether a runner was found running
//	       → loaded MODEL
//	run    → started PID      later: ended: WHY
//	send ID → sent ID
//	recv   → answer ID
func VictimMain(s runtime.Sheep, m job.Model) {
	if err := obey(s, m); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func obey(s runtime.Sheep, m job.Model) error {
	ctx := context.Background()
	found, err := s.(runtime.Recoverer).Recover(ctx)
	if err != nil {
		return err
	}
	fmt.Println("recovered", found != nil && found.Running)
	if err := s.Load(ctx, m, runtime.Discard); err != nil {
		return err
	}
	fmt.Println("loaded", m)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "run":
			started := make(chan int, 1)
			go func() {
				err := s.Run(ctx, func(e runtime.Event) {
					if e.Stage == runtime.Starting {
						started <- e.PID
					}
				})
				fmt.Println("ended:", err)
			}()
			fmt.Println("started", <-started)
		case "send":
			if err := s.Conn().Send(ctx, messenger.Input{JobID: job.ID(rest)}); err != nil {
				return err
			}
			fmt.Println("sent", rest)
		case "recv":
			a, err := s.Conn().Recv(ctx)
			if err != nil {
				return err
			}
			fmt.Println("answer", a.JobID)
		}
	}
	return lines.Err()
}

// Victim is a running VictimMain.
type Victim struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Spawn runs the test program again, with the arguments and additional environment
// variables, by which it recognizes that it is to call VictimMain.
func Spawn(t testing.TB, env []string, args ...string) *Victim {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &Victim{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(v.Kill)
	return v
}

// Expect reads the next line, which must begin with the word, and returns the rest.
func (v *Victim) Expect(word string) string {
	v.t.Helper()
	late := time.AfterFunc(2*hang, func() { _ = v.cmd.Process.Kill() }) // the read ends then
	line, err := v.out.ReadString('\n')
	if !late.Stop() {
		v.t.Fatalf("the daemon has not said %q within %v", word, 2*hang)
	}
	if err != nil || !strings.HasPrefix(line, word+" ") {
		v.t.Fatalf("the daemon says %q, %v; expected %q", line, err, word)
	}
	return strings.TrimSpace(line[len(word):])
}

// Ready waits until the model is loaded.
func (v *Victim) Ready() {
	v.t.Helper()
	v.Expect("recovered")
	v.Expect("loaded")
}

// Say sends a command and does not wait for its answer.
func (v *Victim) Say(command string) {
	v.t.Helper()
	if _, err := fmt.Fprintln(v.in, command); err != nil {
		v.t.Fatal(err)
	}
}

// Tell sends a command and returns the rest of the answer.
func (v *Victim) Tell(command, answer string) string {
	v.t.Helper()
	v.Say(command)
	return v.Expect(answer)
}

// Kill kills the daemon with SIGKILL.
func (v *Victim) Kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}
