// Shepherd-runner runs a plain command as a model: for each job it starts the
// command that the model's config.yaml names, in the directory of that file.
//
//	shepherd-runner -p PORT NAME/VERSION/config.yaml
//
//	# config.yaml
//	command: [python3, predict.py, "{inputs}/input", "{outputs}/output"]
//	timeout: 10m        # of one job; without it a job may run for ever
//	env: {THREADS: "4"} # added to the runner's own environment
//
// The command finds its job in the environment: SHEPHERD_JOB_ID, the directory
// of its inputs SHEPHERD_INPUTS, and SHEPHERD_OUTPUTS, where it leaves its
// results; TRACEPARENT and TRACESTATE are the job's trace, if it is in one. In its
// arguments {inputs} and {outputs} stand for the two. What it
// prints goes where the runner's own output goes. It has failed when its exit
// code is not 0; the end of what it wrote to stderr is then told to the client.
// When a job ends, nothing that its command started is left running.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/iterait/shepherd/runner"
)

func main() {
	if len(os.Args) == 1 && os.Args[0] == guardName {
		guard(os.Stdin)
		return
	}
	runner.Main(load)
}

func load(_ context.Context, args runner.Args) (runner.Handler, error) {
	if args.ConfigPath == "" {
		return nil, errors.New("the path of the model's config.yaml is missing: shepherd-runner -p PORT NAME/VERSION/config.yaml")
	}
	m, err := loadModel(args.ConfigPath)
	if err != nil {
		return nil, err
	}
	return m.process, nil
}
