// Command shepherd is the client alone: the commands that ask a daemon, for machines
// that run none, with macOS and Windows among them. Where shepherdd is installed,
// shepherd is another name of it, which has these commands, too.
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
