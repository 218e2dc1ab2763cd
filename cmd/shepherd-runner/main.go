// Command shepherd-runner runs any command as a model:
//
//	shepherd-runner -p PORT NAME/VERSION/config.yaml
//	shepherd-runner run [-p PORT] [--contract command|warm|cog] [flags] -- COMMAND [ARGUMENT…]
//
//	# config.yaml
//	command: [python3, predict.py, "{inputs}/input", "{outputs}/output"]
//	contract: command   # how the command receives jobs
//	timeout: 10m        # of one job; without it a job may run forever
//	env: {THREADS: "4"} # added to the runner's own environment
//
// With contract `command` it is started for each job, in the directory of config.yaml or,
// with `run`, in the runner's working directory. Its environment has the job:
// SHEPHERD_JOB_ID, the directory of its inputs SHEPHERD_INPUTS, and that of its outputs
// SHEPHERD_OUTPUTS; if the job is traced, also TRACEPARENT and TRACESTATE. In its
// arguments {inputs}, {outputs} and {job} are replaced. The job fails if the exit code is
// not 0; the failure contains the end of stderr. A line `::progress 0.4 text` on stdout
// reports progress. When the job ends, all processes that the command started are killed.
//
// With `warm` the command stays up and receives jobs on its standard input; with `cog`
// it is the HTTP server of an image built with Cog.
//
// In a container shepherd makes this program the first process: it reaps orphans
// and forwards signals.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	signals "github.com/moby/sys/signal"
	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runner"
)

func main() {
	switch {
	case len(os.Args) == 1 && os.Args[0] == guardName:
		guard(os.Stdin)
	case len(os.Args) > 1 && os.Args[1] == "run":
		os.Exit(run(os.Args[2:], os.Stderr))
	default:
		runner.Main(load)
	}
}

func load(ctx context.Context, args runner.Args) (runner.Handler, error) {
	if args.ConfigPath == "" {
		return nil, errors.New("the path of the model's config.yaml is missing: shepherd-runner -p PORT NAME/VERSION/config.yaml")
	}
	m, err := loadModel(args.ConfigPath, newChildren(true))
	if err != nil {
		return nil, err
	}
	handler, _, err := m.open(ctx) // a resident command is killed by its guard when this process ends
	return handler, err
}

// open makes the command ready to receive jobs, which may start it.
func (m *model) open(ctx context.Context) (handler runner.Handler, stop func(), err error) {
	switch m.contract {
	case contractWarm:
		w, err := newWarm(m)
		if err != nil {
			return nil, nil, err
		}
		return w.process, w.stop, nil
	case contractCog:
		c, err := newCog(ctx, m)
		if err != nil {
			return nil, nil, err
		}
		return c.process, c.stop, nil
	}
	return m.process, func() {}, nil
}

// run is the command line `shepherd-runner run`.
func run(arguments []string, stderr io.Writer) int {
	fail := func(code int, format string, args ...any) int {
		fmt.Fprintf(stderr, "shepherd-runner: "+format+"\n", args...)
		return code
	}
	flags := pflag.NewFlagSet("shepherd-runner run", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	port := flags.IntP("port", "p", runner.DefaultPort, "port to listen on")
	how := flags.String("contract", string(contractCommand), "how the command is given jobs: command, warm or cog")
	timeout := flags.Duration("timeout", 0, "how long a job may run; 0 is for ever")
	stop := flags.String("stop-signal", "SIGTERM", "the signal that asks the command to end, by its name or number")
	if err := flags.Parse(arguments); errors.Is(err, pflag.ErrHelp) {
		return 0
	} else if err != nil {
		return fail(2, "%v", err)
	}
	m := &model{timeout: max(*timeout, 0)}
	if err := m.contract.UnmarshalText([]byte(*how)); err != nil {
		return fail(2, "%v", err)
	}
	var err error
	if m.stopSignal, err = signals.ParseSignal(*stop); err != nil || m.stopSignal < 1 || m.stopSignal > 64 {
		return fail(2, "--stop-signal: %q is not a signal; expected SIGTERM, INT, 2 or the like", *stop)
	}
	if flags.NArg() == 0 {
		return fail(2, "no command: shepherd-runner run [flags] -- COMMAND [ARGUMENT…]")
	}
	m.args = flags.Args()[1:]
	if m.dir, err = os.Getwd(); err != nil {
		return fail(messenger.ExitLoad, "%v", err)
	}
	if m.program, err = find(flags.Arg(0), m.dir); err != nil {
		return fail(messenger.ExitLoad, "load the model: %v", err)
	}

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	m.children = newChildren(true)
	defer m.children.close()
	defer m.forwardSignals()()
	handler, closeModel, err := m.open(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return 0
	default:
		return fail(messenger.ExitLoad, "load the model: %v", err)
	}
	defer closeModel()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := runner.Serve(ctx, runner.Config{Port: *port, Log: log}, handler); err != nil {
		return fail(1, "%v", err)
	}
	return 0
}

// forwardSignals forwards signals to the command that do not ask this program to end,
// until stop is called.
func (m *model) forwardSignals() (stop func()) {
	received := make(chan os.Signal, 8)
	done := make(chan struct{})
	signal.Notify(received, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	go func() {
		defer close(done)
		for s := range received {
			if sig, ok := s.(syscall.Signal); ok {
				m.children.forward(sig)
			}
		}
	}()
	return func() {
		signal.Stop(received)
		close(received)
		<-done
	}
}
