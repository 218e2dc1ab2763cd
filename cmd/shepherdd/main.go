// Command shepherdd is the daemon: it takes jobs over HTTP, runs them in its
// sheep and keeps their results in S3 storage. Installed under the name
// shepherd, it is the original's command, with the original's flags.
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
