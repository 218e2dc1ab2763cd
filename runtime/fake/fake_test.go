package fake_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The fake keeps the promises that the core relies on: it passes the suite of
// the real sheep types, with a runner that obeys the same scripts.
func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		w := &flock{runners: fake.NewRunners(), models: t.TempDir()}
		return runtimetest.Harness{
			NewDriver: func(*testing.T) runtime.Driver {
				return fake.New(fake.Config{Runners: w.runners, Load: w.load, Start: w.start, Handle: w.handle, Stubborn: w.stubborn})
			},
			Decode: func(any) error { return nil },
			AddModel: func(t *testing.T, m job.Model, script string) {
				path := filepath.Join(w.models, m.Name, m.Version, "config.yaml")
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			DataRoot: t.TempDir(),
			Gone:     w.runners.Gone,
			Grace:    time.Second,
			Leftovers: func(*testing.T) []string {
				if n := w.runners.Alive(); n > 0 {
					return []string{fmt.Sprint(n, " runners")}
				}
				return nil
			},
		}
	})
}

// flock is the models of one test and what their runners have done.
type flock struct {
	runners *fake.Runners
	models  string

	mu     sync.Mutex
	runner int
	jobs   int
}

func (w *flock) script(m job.Model) (string, error) {
	path := filepath.Join(w.models, m.Name, m.Version, "config.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s`, file `%s` does not exist.", m, path), Class: errdefs.ErrNotFound}
	}
	return string(text), nil
}

func (w *flock) stubborn(m job.Model) bool {
	script, _ := w.script(m)
	return strings.Contains(script, "ignore TERM")
}

func (w *flock) load(_ context.Context, m job.Model) error {
	_, err := w.script(m)
	return err
}

func (w *flock) start(ctx context.Context, m job.Model) error {
	w.mu.Lock()
	w.runner++
	w.jobs = 0
	w.mu.Unlock()
	script, err := w.script(m)
	if err != nil {
		return err
	}
	_, err = obey(ctx, script)
	return err
}

func (w *flock) handle(ctx context.Context, _ job.Model, in messenger.Input) error {
	w.mu.Lock()
	w.jobs++
	who := fmt.Sprint(w.runner, " ", w.jobs)
	w.mu.Unlock()
	script, err := fake.ReadInput(in, job.DefaultInput)
	if err != nil {
		return err
	}
	if _, err := obey(ctx, string(script)); err != nil {
		return err
	}
	return fake.WriteOutput(in, job.DefaultOutput, []byte(who))
}

// obey does what runtimetest.RunnerMain does, as far as there is no process.
func obey(ctx context.Context, script string) (said string, err error) {
	answered := false
	for line := range strings.Lines(script) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "sleep":
			d, err := time.ParseDuration(rest)
			if err != nil {
				return said, err
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return said, ctx.Err()
			}
		case "await":
			for {
				if _, err := os.Stat(rest); err == nil {
					break
				}
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
					return said, ctx.Err()
				}
			}
		case "exit":
			code, err := strconv.Atoi(rest)
			if err != nil {
				return said, err
			}
			exit := runtime.Exit{Code: code, LastLog: strings.TrimSpace(said)}
			if answered {
				return said, &fake.Last{Exit: exit}
			}
			return said, &exit
		case "signal":
			exit := &runtime.Exit{Code: -1, Signal: rest, LastLog: strings.TrimSpace(said)}
			if rest == "SIGSEGV" { // a Go program ends by itself then
				exit.Code, exit.Signal = 2, ""
			}
			return said, exit
		case "expect":
			if !slices.Contains(runtime.TraceOf(ctx).Environ(), rest) {
				return said, &runtime.Exit{Code: 1, LastLog: "expected " + rest}
			}
		case "reply":
			answered = answered || rest == ""
		case "print":
			said += rest + "\n"
		case "error":
			return said, &job.Failure{Message: rest + ": 'key'", Type: "<class '" + rest + "'>", Traceback: "['  File \"model.py\", line 1']"}
		case "unbind", "serve":
			return said, &runtime.Exit{Code: -1, Detail: "it cannot be spoken to", LastLog: said}
		case "silence":
			<-ctx.Done()
			return said, ctx.Err()
		}
	}
	return said, nil
}
