// Command demo starts a daemon with a day's jobs and prints the address of its page. It stays
// up until Ctrl-C. `make demo-page` runs it.
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

	"github.com/iterait/shepherd/test/page/day"
)

func main() {
	programs := flag.String("bin", ".cache/page/bin", "directory of shepherdd, shepherd-shim, shepherd-gpu and page-runner")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *programs); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, programs string) (err error) {
	if programs, err = filepath.Abs(programs); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "shepherd-page-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d, err := day.New(day.Config{Programs: programs, Dir: dir, Pulls: day.CanPull()})
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.Start(starting); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if !day.CanPull() {
		fmt.Println("No sheep pulls an image: that takes root, containerd and runc")
	}
	fmt.Printf("The page is at %s; the day begins\n", d.URL)
	filling, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := d.Fill(filling); err != nil {
		return err
	}
	fmt.Printf("Now jobs run at %s. Ctrl-C stops everything.\n", d.URL)
	<-ctx.Done()
	return nil
}
