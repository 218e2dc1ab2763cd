// Command s5cmd is peak/s5cmd, which benchmarks compare transfers with.
package main

import (
	"context"
	"os"

	"github.com/peak/s5cmd/v2/command"
)

func main() {
	if command.Main(context.Background(), os.Args) != nil {
		os.Exit(1) // it has printed the error
	}
}
