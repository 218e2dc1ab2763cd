// Runner is the scripted runner as the program of a container's image.
package main

import (
	"os"

	"github.com/iterait/shepherd/runtime/runtimetest"
)

func main() { runtimetest.RunnerMain(os.Args[1:]) }
