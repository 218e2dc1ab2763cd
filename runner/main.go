package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/messenger"
)

// Args is a runner's command line: [-p PORT] [-s STREAM] [-r RUNNER] [CONFIG_PATH].
type Args struct {
	// ConfigPath is the model's configuration file or its directory; empty if it was
	// not given.
	ConfigPath string
	// Port is the TCP port to listen on.
	Port int
	// Stream and Runner are the data stream and the runner's class of the Python
	// shepherd-runner. They are accepted so that its command lines work.
	Stream string
	Runner string
}

// Main is the complete main function of a runner: it parses the command line, loads the
// model, binds the port and processes jobs until SIGTERM or SIGINT. It binds the port after
// loading, so that a runner that accepts connections is ready. Main does not return. It
// exits with 0 after a signal, 78 if the model could not be loaded, which shepherd reports
// to clients, 1 if the port could not be bound, and 2 if the command line is wrong.
//
// load's context ends with a signal. It may return a nil Handler only with an error.
func Main(load func(ctx context.Context, args Args) (Handler, error)) {
	os.Exit(run(os.Args[0], os.Args[1:], os.Stderr, load))
}

func run(program string, arguments []string, stderr io.Writer, load func(context.Context, Args) (Handler, error)) int {
	args, err := parseArgs(program, arguments, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", program, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	log := slog.New(slog.NewTextHandler(stderr, nil))
	handler, err := load(ctx, args)
	switch {
	case err == nil:
	case ctx.Err() != nil: // told to end while loading
		return 0
	default:
		fmt.Fprintf(stderr, "%s: load the model: %v\n", program, err)
		return messenger.ExitLoad
	}
	if err := Serve(ctx, Config{Port: args.Port, Log: log}, handler); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", program, err)
		return 1
	}
	return 0
}

func parseArgs(program string, arguments []string, stderr io.Writer) (Args, error) {
	var args Args
	flags := pflag.NewFlagSet(program, pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "Usage: %s [flags] [CONFIG_PATH]\n\nProcesses shepherd's jobs with the model that CONFIG_PATH configures.\n\n%s", program, flags.FlagUsages())
	}
	flags.IntVarP(&args.Port, "port", "p", DefaultPort, "port to listen on")
	flags.StringVarP(&args.Stream, "stream", "s", "predict", "data stream's name")
	flags.StringVarP(&args.Runner, "runner", "r", "", "runner's class")
	if err := flags.Parse(arguments); err != nil {
		return Args{}, err
	}
	if args.Port < 1 || args.Port > 65535 {
		return Args{}, fmt.Errorf("port %d is not between 1 and 65535", args.Port)
	}
	switch flags.NArg() {
	case 0:
	case 1:
		args.ConfigPath = flags.Arg(0)
	default:
		return Args{}, fmt.Errorf("%q: expected one CONFIG_PATH", flags.Args())
	}
	return args, nil
}
