// Command shepherd is the client only: the commands that call a daemon's API, for machines
// without a daemon, including macOS and Windows. Where shepherdd is installed, shepherd is
// another name of that program, which has these commands, too.
package main

import (
	"context"
	"os"

	"github.com/iterait/shepherd/cli/remote"
)

// version is set by the linker.
var version = ""

func main() {
	os.Exit(remote.Run(context.Background(), os.Args[1:], version, remote.Config{}))
}
