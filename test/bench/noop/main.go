// Command noop is a runner that does nothing, for measuring all that is around
// it: each input becomes an output of the same name, by a link. A model whose
// config.yaml begins with "hold" keeps its job until it is stopped.
package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"

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
		return pass, nil
	})
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
