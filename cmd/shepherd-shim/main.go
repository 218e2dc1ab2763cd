// Command shepherd-shim runs one runner for shepherdd, so that the runner outlives the
// daemon. The daemon starts it with a life's directory as its only argument; it is not
// meant to be started by people. See package shim.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
	"github.com/iterait/shepherd/shim"
	"github.com/iterait/shepherd/shim/server"
)

func main() {
	// There is one shim for each sheep, so low memory use matters more than speed.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(8 << 20)
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: shepherd-shim DIRECTORY\nshepherdd starts this program; it cannot be used without it")
		os.Exit(2)
	}
	ready := os.NewFile(shim.ReadyFD, "ready")
	unix.CloseOnExec(shim.ReadyFD)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	folder, err := shim.OpenFolder(os.Args[1])
	if err == nil {
		err = run(folder, ready, log)
	}
	if err != nil {
		fmt.Fprintln(ready, err)
		log.Error("the shim failed", "error", err)
		os.Exit(1)
	}
	// The lock on the directory shows that this process is alive, so it must be held
	// until the process ends.
	runtime.KeepAlive(folder)
}

func run(folder *shim.Folder, ready *os.File, log *slog.Logger) error {
	if err := folder.Lock(); err != nil {
		return err
	}
	spec, err := shim.ReadSpec(folder.Path()) // fails if the directory was removed meanwhile
	if err != nil {
		return err
	}
	log = log.With("sheep", spec.Sheep, "model", spec.Model.String(), "life", spec.Life)
	unix.Umask(0o022)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP) // caught rather than ignored, because the runner would inherit SIG_IGN

	return server.Run(ctx, server.Config{
		Folder: folder,
		Spec:   spec,
		Log:    log,
		Dial: func(ctx context.Context, address string, dial server.DialFunc) (server.Conn, error) {
			conn, err := zmq.Dial(ctx, zmq.Config{
				Endpoint: "tcp://" + address,
				Dial:     dial,
				Limits:   zmq.Limits{MaxMessage: messenger.MaxMessage},
				Log:      log,
			})
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
	}, func() {
		fmt.Fprintln(ready, shim.Ready)
		ready.Close()
	})
}
