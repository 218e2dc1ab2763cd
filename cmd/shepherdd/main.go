// Command shepherdd is the daemon: it accepts jobs over HTTP, runs them in its sheep and
// stores their results in S3 storage. Under the name shepherd, it accepts the original's
// commands and flags.
package main

import (
	"context"
	"os"

	"github.com/iterait/shepherd/cli"
)

// Set by the linker.
var (
	version = ""
	commit  = ""
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args, cli.BuildInfo(version, commit)))
}
