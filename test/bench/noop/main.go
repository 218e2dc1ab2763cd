// Command noop is a runner that does nothing, to measure everything else: each input becomes
// an output of the same name, by a link. With a model whose config.yaml begins with "hold"
// it keeps its job until it is stopped. With "timed PAUSE FILE" it computes for PAUSE, and
// writes a line to FILE for each job: when it received and when it finished the job, in
// nanoseconds of Unix time.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/runner"
)

func main() {
	runner.Main(func(_ context.Context, args runner.Args) (runner.Handler, error) {
		config, err := os.ReadFile(args.ConfigPath)
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(config, []byte("hold")) {
			return func(ctx context.Context, _ runner.Job) error {
				<-ctx.Done()
				return ctx.Err()
			}, nil
		}
		if fields := strings.Fields(string(config)); len(fields) == 3 && fields[0] == "timed" {
			return timed(fields[1], fields[2])
		}
		return pass, nil
	})
}

func timed(pause, file string) (runner.Handler, error) {
	takes, err := time.ParseDuration(pause)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, j runner.Job) error {
		began := time.Now().UnixNano()
		time.Sleep(takes)
		err := pass(ctx, j)
		if err == nil {
			_, err = fmt.Fprintln(log, began, time.Now().UnixNano())
		}
		return err
	}, nil
}

func pass(_ context.Context, j runner.Job) error {
	return filepath.WalkDir(j.InputDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := entry.Name()
		if path == j.Input() {
			name = filepath.Base(j.Output())
		}
		return os.Link(path, filepath.Join(j.OutputDir, name))
	})
}
