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
	// ConfigPath is the model's configuration file or its directory; empty when
	// it was left out.
	ConfigPath string
	// Port is the port to listen on.
	Port int
	// Stream and Runner are what the Python shepherd-runner calls the data
	// stream and the runner's class. They are accepted for its command lines'
	// sake.
	Stream string
	Runner string
}

// Main is a runner's whole main function: it reads the command line, loads the
// model, binds the port and processes jobs until the process is told to end
// (SIGTERM or SIGINT). It binds after loading, so that a runner that is
// connected to is ready. Main does not return: it exits with 0 when told to
// end, 78 when the model could not be loaded, which shepherd tells its clients,
// 1 when the port could not be bound, and 2 when the command line is wrong.
//
// Load's context ends when the process is told to end. It may return a nil
// Handler only with an error.
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
