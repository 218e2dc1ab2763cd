package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/internal/logging"
	"github.com/iterait/shepherd/sandbox"
)

// sandboxOptions are the flags of `shepherdd sandbox`.
type sandboxOptions struct {
	dir, host                 string
	storagePort, registryPort int
}

// sandboxCommand is the subcommand that serves a storage and a registry to try
// shepherd with.
func sandboxCommand() *cobra.Command {
	var o sandboxOptions
	c := &cobra.Command{
		Use:   "sandbox",
		Short: "Serve an S3 storage and an image registry for trying out shepherd",
		Long: "Serves an S3 storage and an OCI image registry until Ctrl-C: what the example\n" +
			"configurations need, without Docker. Stored files stay in --dir. The keys are public\n" +
			"examples and the registry has no users, so it listens on the loopback address unless\n" +
			"--host is given.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("unexpected argument %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runSandbox(cmd, o) },
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "", "directory for files and images (default: shepherd-sandbox in the user's cache directory)")
	f.StringVar(&o.host, "host", "127.0.0.1", "address to listen on; 0.0.0.0 lets everyone on the network connect")
	f.IntVar(&o.storagePort, "storage-port", sandbox.StoragePort, "port of the S3 storage; 0 picks a free one")
	f.IntVar(&o.registryPort, "registry-port", sandbox.RegistryPort, "port of the registry; 0 picks a free one")
	return c
}

func runSandbox(cmd *cobra.Command, o sandboxOptions) error {
	if o.dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("%w: name a directory for the sandbox with --dir", err)
		}
		o.dir = filepath.Join(cache, "shepherd-sandbox")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := sandbox.Open(sandbox.Config{
		Dir:             o.dir,
		StorageAddress:  net.JoinHostPort(o.host, strconv.Itoa(o.storagePort)),
		RegistryAddress: net.JoinHostPort(o.host, strconv.Itoa(o.registryPort)),
		Log:             logging.New(cmd.ErrOrStderr(), logging.Config{Level: slog.LevelInfo}),
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: stop what listens there, perhaps another sandbox, or choose other ports with --storage-port and --registry-port", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), sandboxWelcome, s.StorageAddr(), s.RegistryAddr(), sandbox.AccessKey, sandbox.SecretKey, o.dir)
	if ip := net.ParseIP(o.host); ip != nil && !ip.IsLoopback() {
		fmt.Fprintln(cmd.OutOrStdout(), "Anyone who can reach these addresses can read and change everything in the sandbox.")
	}
	return errors.Join(s.Serve(ctx), s.Close())
}

const sandboxWelcome = `Storage (S3) at http://%[1]s
Registry at http://%[2]s
Files and images are kept in %[5]s

In shepherdd's configuration:

  registry:
    url: http://%[2]s
  storage:
    url: http://%[1]s
    access_key: %[3]s
    secret_key: %[4]s

With other clients:

  AWS_ACCESS_KEY_ID=%[3]s AWS_SECRET_ACCESS_KEY=%[4]s AWS_DEFAULT_REGION=us-east-1 \
    aws --endpoint-url http://%[1]s s3 ls
  ctr images push --plain-http %[2]s/NAME:VERSION
  ctr images pull --plain-http %[2]s/NAME:VERSION
  curl -s http://%[2]s/v2/_catalog

Ctrl-C ends the sandbox; what is in it stays.
`
