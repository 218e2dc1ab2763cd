// Command runner is the digits model as a shepherd runner. A sheep starts it
// in the folder of its models:
//
//	runner -p PORT digits/v1/config.yaml
//
// Its inputs and outputs are described in examples/digits/classify.
package main

import (
	"context"

	"github.com/iterait/shepherd/examples/digits/classify"
	"github.com/iterait/shepherd/examples/digits/model"
	"github.com/iterait/shepherd/runner"
)

func main() {
	runner.Main(load)
}

// load is called once, before the first job; jobs are processed one after the other.
func load(_ context.Context, args runner.Args) (runner.Handler, error) {
	classifier, err := model.Open(args.ConfigPath)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, job runner.Job) error {
		return classify.Job(ctx, classifier, job.InputDir, job.Output())
	}, nil
}
