package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
	"github.com/iterait/shepherd/runner"
)

// A runner that answers each job with its input in capitals, and what shepherd
// says to it.
func ExampleServe() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() {
		cfg := runner.Config{Host: "127.0.0.1", Port: 9973, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		served <- runner.Serve(ctx, cfg, func(ctx context.Context, j runner.Job) error {
			text, err := os.ReadFile(j.Input())
			if err != nil {
				return err
			}
			return os.WriteFile(j.Output(), bytes.ToUpper(text), 0o644)
		})
	}()

	root, _ := os.MkdirTemp("", "runner")
	defer os.RemoveAll(root)
	os.MkdirAll(filepath.Join(root, "job-1", "inputs"), 0o755)
	os.MkdirAll(filepath.Join(root, "job-1", "outputs"), 0o755)
	os.WriteFile(filepath.Join(root, "job-1", "inputs", "input"), []byte("hello"), 0o644)

	conn, err := zmq.Dial(ctx, zmq.Config{Endpoint: "tcp://127.0.0.1:9973"})
	if err != nil {
		fmt.Println(err)
		return
	}
	frame, _ := messenger.EncodeInput(messenger.Input{JobID: "job-1", IODataRoot: root})
	conn.Send(ctx, frame)
	answer, _ := conn.Recv(ctx)
	output, _ := os.ReadFile(filepath.Join(root, "job-1", "outputs", "output"))
	fmt.Printf("%s\n%s\n", answer, output)
	conn.Close()

	stop()
	fmt.Println(<-served)
	// Output:
	// {"message":{"identity":"","job_id":"job-1","message_type":"DoneMessage"}}
	// HELLO
	// <nil>
}
