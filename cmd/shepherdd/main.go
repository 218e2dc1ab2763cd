// Command shepherdd is the daemon: it takes jobs over HTTP, runs them in its
// sheep and keeps their results in S3 storage. Installed under the name
// shepherd, it is the original's command, with the original's flags.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/systemd"
)

// Set by the linker.
var (
	version = ""
	commit  = ""
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
	exitConfig  = 78 // EX_CONFIG of sysexits.h: starting it again is of no use; the unit knows it
)

func main() {
	root := rootCommand(filepath.Base(os.Args[0]))
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		fmt.Fprintln(os.Stderr, problems) // a line each, which says where
		var unfit *configError
		if errors.As(err, &unfit) {
			os.Exit(exitConfig)
		}
		os.Exit(exitFailure)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", root.Name(), err)
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "Try `%s --help`.\n", root.Name())
		os.Exit(exitUsage)
	}
	os.Exit(exitFailure)
}

// configError is a configuration that the daemon cannot start with.
type configError struct{ config.Problems }

func (e *configError) Unwrap() error { return e.Problems }

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// rootCommand is shepherdd itself, which serves, with its subcommands.
func rootCommand(name string) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   name + " -c FILE",
		Short: "Run model jobs on the GPUs of this machine",
		Long: "shepherdd takes jobs over HTTP, runs each in a sheep (a supervised runner\n" +
			"with one model loaded) and keeps inputs and results in S3 storage.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("unexpected argument %q", args[0])}
			}
			return nil
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.config == "" {
				return &usageError{errors.New("a configuration file is needed: -c FILE")}
			}
			o.hostSet, o.portSet = cmd.Flags().Changed("host"), cmd.Flags().Changed("port")
			var err error
			if o.manager, err = systemd.Take(); err != nil {
				return err
			}
			defer o.manager.Close()
			// The first signal drains, the second ends the draining.
			drain, stopDrain := signal.NotifyContext(cmd.Context(), o.signalsToStop()...)
			defer stopDrain()
			err = serve(drain, o, os.Stderr)
			var problems config.Problems
			if errors.As(err, &problems) {
				err = &configError{problems}
			}
			if err != nil {
				_ = o.manager.Status(err.Error()) // the journal has it in any case
			}
			return err
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	f := root.Flags()
	// -h is the original's --host, so help has no short form.
	root.PersistentFlags().Bool("help", false, "show this help")
	f.StringVarP(&o.config, "config", "c", "", "configuration file (required)")
	f.StringVarP(&o.host, "host", "h", "0.0.0.0", "address the API listens on")
	f.IntVarP(&o.port, "port", "p", 5000, "port the API listens on; 0 picks a free one")
	root.AddCommand(
		configCommand(),
		doctorCommand(),
		generateCommand(),
		gpusCommand(),
		jobsCommand(),
		ledgerCommand(),
		modelsCommand(),
		reloadCommand(),
		sandboxCommand(),
		sheepCommand(),
		tokenCommand(),
		versionCommand(),
	)
	return root
}

// signalsToStop are those that ask the daemon to stop. The end of the terminal it
// was started in is one, unless it was started to outlive that (nohup), or by a
// service manager, for which the same signal means to reload.
func (o options) signalsToStop() []os.Signal {
	signals := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) && !o.manager.Notifies() {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

func versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Show the version and the commit it was built from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, c := build()
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
					"version": v, "commit": c, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "shepherd %s (commit %s, %s %s/%s)\n", v, c, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return c
}

// build is the version and commit: those the linker set, else what Go noted.
func build() (string, string) {
	v, c := version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && c == "" {
				c = s.Value
			}
		}
	}
	if v == "" {
		v = "unknown"
	}
	if c == "" {
		c = "unknown"
	}
	return v, c
}
