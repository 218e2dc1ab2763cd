// Package cli implements the command line: shepherdd itself, which runs the daemon,
// and its subcommands.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/internal/systemd"
)

// Exit codes. Those of commands that ask a daemon are in package remote.
const (
	exitFailure = remote.ExitFailure
	exitUsage   = remote.ExitUsage
	exitConfig  = 78 // EX_CONFIG of sysexits.h: a restart does not help, and the unit does not try one
)

// serviceSocket is the socket of the packaged service.
const serviceSocket = "/run/shepherd/api.sock"

// Run executes the command line args, whose first is the program's name, and returns
// the exit code. Errors are printed to standard error.
func Run(ctx context.Context, args []string, b Build) int {
	root := newRoot(filepath.Base(args[0]), b)
	root.SetArgs(args[1:])
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		printErrors(os.Stderr, problems.Error()) // a line each, with file, line and column
		var unfit *configError
		if errors.As(err, &unfit) {
			return exitConfig
		}
		return exitFailure
	}
	var coded *remote.Error
	if !errors.As(err, &coded) || coded.Err != nil {
		printErrors(os.Stderr, root.Name()+": "+errtext.Of(err))
	}
	var usage *usageError
	if errors.As(err, &usage) || coded != nil && coded.Code == exitUsage {
		fmt.Fprintf(os.Stderr, "Try `%s --help`.\n", cmd.CommandPath())
		return exitUsage
	}
	return remote.ExitCode(err)
}

// printErrors prints lines. In the journal they have the priority of errors
// (sd-daemon(3)).
func printErrors(to *os.File, text string) {
	prefix := ""
	if systemd.Journaled(to) {
		prefix = "<3>"
	}
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintln(to, prefix+line)
	}
}

// configError is a configuration that the daemon cannot start with.
type configError struct{ config.Problems }

func (e *configError) Unwrap() error { return e.Problems }

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// newRoot is shepherdd itself, which runs the daemon, with its subcommands.
func newRoot(name string, b Build) *cobra.Command {
	o := daemon.Options{Version: b.Version, Commit: b.Commit}
	var host string
	var port int
	root := &cobra.Command{
		Use:   name + " -c FILE",
		Short: "Run model jobs on the GPUs of this machine",
		Long: "shepherdd accepts model jobs over HTTP, runs each in a sheep (a supervised runner with\n" +
			"one model loaded), and stores inputs and results in S3 storage. Without a command it\n" +
			"runs the daemon; the commands ask a daemon, or manage one on this machine.",
		Example: "  " + name + " -c shepherd.yml                          # the daemon\n" +
			"  " + name + " submit digits:v1 page.png -o results     # a job and its results",
		SuggestionsMinimumDistance: 2,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			like := ""
			if known := cmd.SuggestionsFor(args[0]); len(known) > 0 {
				like = "; did you mean " + strings.Join(known, " or ") + "?"
			}
			return &usageError{fmt.Errorf("there is no command %q%s", args[0], like)}
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.ConfigFile == "" {
				return noConfig()
			}
			if cmd.Flags().Changed("host") {
				o.Host = &host
			}
			if cmd.Flags().Changed("port") {
				o.Port = &port
			}
			var err error
			if o.Manager, err = systemd.Take(); err != nil {
				return err
			}
			defer o.Manager.Close()
			// The first signal starts draining, the second ends it.
			ctx, stop := signal.NotifyContext(cmd.Context(), daemon.StopSignals(o.Manager)...)
			defer stop()
			err = daemon.Run(ctx, o, os.Stderr)
			var problems config.Problems
			if errors.As(err, &problems) {
				err = &configError{problems}
			}
			if err != nil {
				_ = o.Manager.Status(err.Error()) // the journal has it in any case
			}
			return err
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f := root.Flags()
	// -h is the original's --host, so help has no short form.
	root.PersistentFlags().Bool("help", false, "show this help")
	f.StringVarP(&o.ConfigFile, "config", "c", "", "configuration file (required)")
	f.StringVarP(&host, "host", "h", "0.0.0.0", "address that the API listens on")
	f.IntVarP(&port, "port", "p", 5000, "port that the API listens on; 0 picks a free one")
	target := remote.Config{Locate: locate, LocalModels: localModels, DialSocket: access.Dial, Socket: serviceSocket}
	root.AddCommand(remote.Commands(target)...)
	root.AddCommand(
		configCommand(),
		devCommand(b),
		doctorCommand(),
		generateCommand(),
		initCommand(),
		ledgerCommand(),
		nodesCommand(target),
		recoverCommand(),
		reloadCommand(target),
		sandboxCommand(),
		sheepCommand(b, target),
		tokenCommand(),
		versionCommand(b),
	)
	remote.Group(root)
	return root
}

// locate returns the address of the daemon that is running with a configuration file,
// or remote.ErrNoDaemon.
func locate(file string) (string, error) {
	cfg, err := daemon.LoadConfig(file)
	if err != nil {
		return "", err
	}
	running, err := daemon.Running(cfg.StateDir)
	if err != nil {
		return "", err
	}
	if !running {
		return "", &remote.Error{Code: remote.ExitUnreachable, Err: remote.ErrNoDaemon}
	}
	return daemon.Address(cfg.StateDir)
}
