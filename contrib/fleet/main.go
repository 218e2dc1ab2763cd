// Command fleet demonstrates a fleet: two nodes that share a PostgreSQL and a MinIO classify a
// hundred handwritten digits, one in each job. One node is killed with all its processes while
// jobs run, and the other runs its jobs. `make demo-fleet` runs it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of shepherdd, shepherd-shim and digits-runner")
	flag.StringVar(&o.minio, "minio", ".cache/bin/minio", "the program of the storage")
	flag.StringVar(&o.config, "config", "contrib/fleet/node.yml", "configuration of the nodes")
	flag.StringVar(&o.models, "models", "examples/digits/models", "directory of the model digits:v1")
	flag.StringVar(&o.dir, "dir", ".cache/fleet", "directory for all state and files; emptied first")
	flag.DurationVar(&o.lease, "lease", 12*time.Second, "the nodes' lease (ledger.lease)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, o, os.Stdout); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, minio, config, models, dir string
	lease                           time.Duration
}

// startTime bounds each start and stop, jobsTime all jobs.
const (
	startTime = 2 * time.Minute
	jobsTime  = 10 * time.Minute
)

// killAfter is how many digits are classified when a node is killed.
const killAfter = 30

func demo(ctx context.Context, o options, out io.Writer) (err error) {
	for _, path := range []*string{&o.bin, &o.minio, &o.config, &o.models, &o.dir} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(o.dir), os.MkdirAll(o.dir, 0o700)); err != nil {
		return err
	}
	samples, err := digits.Samples()
	if err != nil {
		return err
	}

	database, err := postgrestest.Start("fsync=on", "synchronous_commit=on", "full_page_writes=on")
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	files, err := startStorage(ctx, o)
	if err != nil {
		return fmt.Errorf("start MinIO: %w", err)
	}
	defer func() { err = errors.Join(err, files.stop()) }()
	fmt.Fprintf(out, "PostgreSQL has the queue, MinIO at %s the files; a node's lease is %v\n", files.url, o.lease)

	shared := environment(o, database.URL("postgres"), files)
	secret := filepath.Join(o.dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return err
	}
	var nodes []*node
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.stop())
		}
	}()
	for _, name := range []string{"a", "b"} {
		n, err := startNode(ctx, o, name, append(shared, "FLEET_SECRET_FILE="+secret))
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		fmt.Fprintf(out, "Node %s serves its API at %s\n", name, n.api)
	}

	ctx, cancel := context.WithTimeout(ctx, jobsTime)
	defer cancel()
	w := newWork(nodes, database.URL("postgres"), samples)
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	killed, failed := w.killOne(ctx, nodes[0])
	if failed != nil {
		cancel()
		return errors.Join(failed, <-done)
	}
	fmt.Fprintf(out, "%d of %d digits are classified. Node a and all that it runs is killed; its jobs at that moment: %d\n\n", killed.classified, len(samples), killed.held)
	if err := <-done; err != nil {
		return err
	}
	r, err := w.report(ctx, nodes[1], killed)
	if err != nil {
		return err
	}
	r.print(out)
	return r.verdict()
}
