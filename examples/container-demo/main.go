// Command container-demo shows container sheep with real jobs, without Docker:
// it builds two images, pushes them to a sandbox registry, and runs them with shepherdd
// through containerd: a static program on an empty base classifies handwritten digits, and
// Tesseract on Debian's libraries reads a page of text. `make demo-container` runs it; `make demo-any` runs it with
// images that do not use shepherd's runner interface.
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

	"github.com/iterait/shepherd/examples/internal/client"
)

type options struct {
	bin, examples, containerd, mirror string
	any                               bool // images that do not use shepherd's runner interface
}

// startTime bounds the start of a program, imagesTime the build of the images, jobTime both
// jobs with their pulls, and stopTime cleaning up.
const (
	startTime  = 30 * time.Second
	imagesTime = 10 * time.Minute
	jobTime    = 5 * time.Minute
	stopTime   = time.Minute
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of shepherdd, shepherd-shim, shepherd-runner and digits-runner")
	flag.StringVar(&o.examples, "examples", "examples", "directory of the examples")
	flag.StringVar(&o.containerd, "containerd", systemSocket, "containerd's socket; where it does not answer, a private containerd is started")
	flag.StringVar(&o.mirror, "mirror", "", "Debian archive to take Tesseract from")
	flag.BoolVar(&o.any, "any", false, "run images that know nothing of shepherd")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := demo(ctx, o)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "container-demo: interrupted")
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "container-demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and Debian's root file system are made by root: sudo make demo-container")
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	// Short, because a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "shepherd-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "The logs are in", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	ctd, err := openContainerd(ctx, o.containerd, filepath.Join(dir, "containerd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctd.stop()) }()
	box, err := startSandbox(o.bin, filepath.Join(dir, "sandbox"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.stop()) }()

	pushing, cancel := context.WithTimeout(ctx, imagesTime)
	push, sheep := pushImages, twoSheep
	if o.any {
		push, sheep = pushAny, anySheep
	}
	refs, err := push(pushing, o, dir, box.registry)
	cancel()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctd.forget(context.WithoutCancel(ctx), refs)) }()
	daemon, err := startDaemon(o.bin, filepath.Join(dir, "shepherd"), box, ctd, sheep)
	if err != nil {
		return err
	}
	if o.any {
		err = runAny(ctx, daemon, box)
	} else {
		err = run(ctx, daemon, box, ctd)
	}
	return errors.Join(err, daemon.stop())
}

// run runs both jobs at the same time and prints their results and the sheep that ran them.
func run(ctx context.Context, d *daemon, box *sandbox, ctd *containerd) error {
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	c, err := client.New(client.Config{API: d.api, Storage: box.storage, AccessKey: box.accessKey, SecretKey: box.secretKey})
	if err != nil {
		return err
	}
	stamp := time.Now().UTC().Format("20060102-150405.000000")
	digitsJob, pageJob := "digits-"+stamp, "page-"+stamp
	samples, err := submitDigits(ctx, c, digitsJob)
	if err != nil {
		return err
	}
	if err := submitPage(ctx, c, pageJob); err != nil {
		return err
	}
	for _, id := range []string{digitsJob, pageJob} {
		if err := c.WaitReady(ctx, id); err != nil {
			return err
		}
	}
	if err := showDigits(ctx, c, digitsJob, samples); err != nil {
		return err
	}
	if err := showPage(ctx, c, pageJob); err != nil {
		return err
	}
	fmt.Println("\nBoth sheep stay up with their models:")
	for _, list := range []string{"containers", "tasks"} {
		out, err := ctd.ctr(ctx, list, "ls")
		if err != nil {
			return err
		}
		fmt.Printf("\n$ ctr -n %s %s ls\n%s", namespace, list, out)
	}
	fmt.Println()
	return nil
}
