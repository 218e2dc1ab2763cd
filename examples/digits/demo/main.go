// Command demo runs one real job through shepherd: it starts shepherdd with one bare
// sheep, puts a hundred handwritten digits into its storage with an S3 client, submits a
// job that classifies them with the model digits:v1, and prints the results. `make demo` runs it once, `make run` stays up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/internal/client"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of shepherdd, shepherd-shim and digits-runner")
	flag.StringVar(&o.models, "models", "examples/digits/models", "directory of the model digits:v1")
	flag.StringVar(&o.dir, "dir", ".cache/demo", "directory for the daemon's state and files")
	flag.BoolVar(&o.stay, "stay", false, "stay up until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, models, dir string
	stay             bool
}

// startTime bounds the daemon's start, jobTime the job.
const (
	startTime = 30 * time.Second
	jobTime   = 2 * time.Minute
)

func demo(ctx context.Context, o options) (err error) {
	for _, path := range []*string{&o.bin, &o.models, &o.dir} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	starting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	d, err := startDaemon(starting, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	fmt.Printf("shepherdd serves its API at %s and its storage at %s\n", d.api, d.storage)

	id, err := classify(ctx, d)
	if err != nil {
		return err
	}
	fmt.Printf("The outputs lie in s3://%s/outputs/ on that storage, on disk below %s\n", id, o.dir)
	if !o.stay {
		return nil
	}
	fmt.Printf(`
Go on with it, for example:

  curl -s %[1]s/status
  curl -s %[1]s/jobs/%[2]s/result
  AWS_ACCESS_KEY_ID=%[4]s AWS_SECRET_ACCESS_KEY=%[5]s AWS_DEFAULT_REGION=us-east-1 \
    aws --endpoint-url %[3]s s3 ls --recursive s3://%[2]s/

The API is described at %[1]s/ui. Ctrl-C stops everything.
`, d.api, id, d.storage, d.accessKey, d.secretKey)
	select {
	case <-ctx.Done():
		fmt.Println("\nStopping")
		return nil
	case <-d.exited:
		return fmt.Errorf("shepherdd has ended: %w; its log is %s", d.err, d.logPath)
	}
}

// classify runs one job over the hundred digits and prints the results. It returns the
// job's id.
func classify(ctx context.Context, d *daemon) (string, error) {
	samples, err := digits.Samples()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	c, err := client.New(client.Config{API: d.api, Storage: d.storage, AccessKey: d.accessKey, SecretKey: d.secretKey})
	if err != nil {
		return "", err
	}
	id := "digits-" + time.Now().UTC().Format("20060102-150405.000000")
	began := time.Now()
	if err := putInputs(ctx, c, id, samples); err != nil {
		return "", err
	}
	fmt.Printf("Put %d handwritten digits into s3://%s/inputs/\n", len(samples), id)
	if err := c.StartJob(ctx, id, "digits", "v1"); err != nil {
		return "", err
	}
	if err := c.WaitReady(ctx, id); err != nil {
		return "", err
	}
	answers, err := predictions(ctx, c, id)
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	right, err := show(samples, answers)
	if err != nil {
		return "", err
	}
	fmt.Printf("Job %s: %d of %d right (%.1f %%), from the first upload to the result in %v\n",
		id, right, len(samples), 100*float64(right)/float64(len(samples)), took.Round(time.Millisecond))
	return id, nil
}

// show prints predictions beside labels, a row for each digit, and counts the
// right ones.
func show(samples []digits.Sample, answers map[string]int) (right int, err error) {
	fmt.Println("\n  label   predicted")
	for label := range 10 {
		fmt.Printf("    %d    ", label)
		for _, s := range samples {
			if s.Label != label {
				continue
			}
			got, ok := answers[s.Name]
			if !ok {
				return 0, fmt.Errorf("the result has no prediction for %s", s.Name)
			}
			mark := " "
			if got != label {
				mark = "*"
			} else {
				right++
			}
			fmt.Printf(" %d%s", got, mark)
		}
		fmt.Println()
	}
	fmt.Println()
	return right, nil
}
