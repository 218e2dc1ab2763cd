// Package remote is the part of the command line that asks a daemon over its API:
// submit, ls, wait, result and the other commands for users of a daemon. It does not
// depend on the system, so it also builds for macOS and Windows, where the program has
// only these commands.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// Exit codes of commands that ask a daemon.
const (
	ExitFailure     = 1   // anything else; standard error says what
	ExitUsage       = 2   // the command line cannot be understood
	ExitJobFailed   = 3   // the job has failed
	ExitCancelled   = 4   // the job was cancelled
	ExitNotFound    = 5   // there is no such job, file or model
	ExitUnreachable = 6   // no daemon answers, or it cannot answer at the moment
	ExitRefused     = 7   // the daemon does not know the caller, or does not allow it
	ExitConflict    = 8   // not as the job is now: it has ended, or has not
	ExitTimeout     = 9   // the job has not ended within --timeout
	ExitInterrupted = 130 // by Ctrl-C, as shells have it
)

// Config is what the program that the commands are part of knows.
type Config struct {
	// Locate returns the address of the daemon that is running with a configuration
	// file, or ErrNoDaemon; nil where no daemon runs on this system.
	Locate func(file string) (string, error)
	// LocalModels opens the models of this machine, with a configuration file whose
	// daemon is not running; nil where no daemon runs on this system. The caller calls
	// close.
	LocalModels func(ctx context.Context, file string, logTo io.Writer) (_ Models, close func(), err error)
	// DialSocket is client.Config's.
	DialSocket func(ctx context.Context, path string) (net.Conn, error)
	// Socket is the daemon's that is asked where no other is named; empty for none.
	Socket string
	// Interrupts receives a value when the user wants to end a command; nil for the
	// signals of the process.
	Interrupts <-chan os.Signal
}

// ErrNoDaemon means that no daemon is running with a configuration.
var ErrNoDaemon = errors.New("no daemon is running with this configuration; start it, or give the address of another with --server")

// Error is an error with the exit code of its kind.
type Error struct {
	Code int
	Err  error // nil where everything was said already
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// usage is a mistake on the command line.
func usage(format string, args ...any) error {
	return &Error{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// ExitCode is the exit code that an error stands for.
func ExitCode(err error) int {
	var coded *Error
	var status *client.StatusError
	var unreachable *client.UnreachableError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.Code
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	case errors.As(err, &unreachable):
		return ExitUnreachable
	case !errors.As(err, &status):
		return ExitFailure
	}
	switch status.Status {
	case http.StatusNotFound:
		return ExitNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ExitRefused
	case http.StatusConflict:
		return ExitConflict
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return ExitUnreachable
	}
	return ExitFailure
}

// Commands are all commands that ask a daemon, in the order of their names.
func Commands(c Config) []*cobra.Command {
	return []*cobra.Command{
		cancelCommand(c), contextsCommand(c), eventsCommand(c), explainCommand(c), gpusCommand(c), jobsCommand(c), loginCommand(c), logoutCommand(c),
		logsCommand(c), lsCommand(c), modelsCommand(c), resultCommand(c), retryCommand(c), statusCommand(c), submitCommand(c), topCommand(c), waitCommand(c), webhooksCommand(c),
	}
}

// groups are how help tells commands apart, and the names of those of each.
var groups = []struct{ title, names string }{
	{"Jobs:", "submit ls status wait logs result explain cancel retry events jobs"},
	{"The flock, and what it runs:", "top sheep gpus models nodes webhooks"},
	{"Which daemon to ask:", "login logout contexts"},
	{"A daemon and its machine:", "init config doctor dev sandbox token reload ledger recover generate"},
}

// Group has the help of a program tell its commands apart by what they are about.
func Group(root *cobra.Command) {
	for _, g := range groups {
		for _, cmd := range root.Commands() {
			if !slices.Contains(strings.Fields(g.names), cmd.Name()) {
				continue
			}
			if cmd.GroupID = g.title; !root.ContainsGroup(g.title) {
				root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
			}
		}
	}
}

// Run executes the command line args of a program that has these commands alone,
// and returns the exit code.
func Run(ctx context.Context, args []string, version string, c Config) int {
	root := &cobra.Command{
		Use:           "shepherd",
		Short:         "Submit model jobs to shepherd and follow them",
		Version:       cmp.Or(version, "unknown"),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &Error{Code: ExitUsage, Err: err} })
	root.AddCommand(Commands(c)...)
	root.AddCommand(sheepCommand(c), nodesCommand(c))
	Group(root)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var coded *Error
	if !errors.As(err, &coded) || coded.Err != nil {
		fmt.Fprintf(os.Stderr, "shepherd: %v\n", err)
	}
	return ExitCode(err)
}

// session is one execution of a command.
type session struct {
	*client.ClientWithResponses
	out, err   io.Writer
	in         io.Reader
	program    string
	interrupts <-chan os.Signal
}

// run executes do with the daemon that the flags name, and a context that ends with an
// interrupt.
func (t *Target) run(cmd *cobra.Command, do func(context.Context, *session) error) error {
	return t.runTaking(cmd, func(ctx context.Context, s *session) error {
		return s.interruptible(ctx, func(ctx context.Context) error { return do(ctx, s) })
	})
}

// runTaking is run for what takes interrupts itself: nothing else does meanwhile.
func (t *Target) runTaking(cmd *cobra.Command, do func(context.Context, *session) error) error {
	interrupts := t.config.Interrupts
	if interrupts == nil {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
		interrupts = signals
	}
	daemon, err := t.Open()
	if err != nil {
		return err
	}
	defer daemon.CloseIdle()
	s := &session{
		ClientWithResponses: daemon, out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), in: cmd.InOrStdin(),
		program: cmd.Root().Name(), interrupts: interrupts,
	}
	return Hint(do(cmd.Context(), s))
}

// reach returns the error of a daemon that is not there. Commands that go on with what happens
// begin with it: later they wait for a daemon that goes away.
func reach(ctx context.Context, daemon *client.ClientWithResponses) error {
	if _, err := daemon.GetSessionWithResponse(ctx); comesBack(err) {
		return err
	}
	return nil // what else is wrong, the stream says
}

// interruptible executes do with a context that ends with an interrupt. A second one does not
// wait for do, which may be writing where nobody reads.
func (s *session) interruptible(ctx context.Context, do func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	result := make(chan error, 1)
	go func() { result <- do(ctx) }()
	select {
	case err := <-result:
		return err
	case <-s.interrupts:
		stop()
		select {
		case <-result:
		case <-s.interrupts:
		}
		return &Error{Code: ExitInterrupted}
	}
}

// Hint says what to do about errors of reaching a daemon.
func Hint(err error) error {
	var unreachable *client.UnreachableError
	switch {
	case !errors.As(err, &unreachable):
		return err
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		err = fmt.Errorf("no daemon answers at %s; start it (systemctl start shepherdd), or name its address with --server", unreachable.Server)
	case errors.Is(err, syscall.EACCES):
		return &Error{Code: ExitRefused, Err: fmt.Errorf("this user may not use %s; ask as root, or for membership in the group of api.socket_group", unreachable.Server)}
	case errors.Is(err, context.Canceled):
		return &Error{Code: ExitInterrupted}
	}
	return &Error{Code: ExitUnreachable, Err: err}
}
