package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// daemon is a shepherdd with the embedded storage, the embedded ledger and one
// bare sheep, on ports that it picks itself.
type daemon struct {
	api, storage         string
	accessKey, secretKey string
	logPath              string

	cmd    *exec.Cmd
	exited chan struct{}
	err    error // set when exited is closed
}

const configuration = `data_root: %[1]s
state_dir: %[6]s
storage: # embedded: there is no url
  listen: 127.0.0.1:0
  access_key: %[2]s
  secret_key: %[3]s
api:
  host: 127.0.0.1
  port: 0
sheep:
  digits_sheep:
    type: bare
    working_directory: %[4]s
    command: [%[5]s]
`

// startDaemon starts shepherdd and returns when it serves.
func startDaemon(ctx context.Context, o options) (*daemon, error) {
	d := &daemon{accessKey: "demo", secretKey: randomKey(), logPath: filepath.Join(o.dir, "shepherdd.log"), exited: make(chan struct{})}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(o.dir, "shepherd.yml")
	text := fmt.Sprintf(configuration,
		quote(filepath.Join(o.dir, "data")), d.accessKey, d.secretKey, quote(o.models), quote(filepath.Join(o.bin, "digits-runner")), quote(filepath.Join(o.dir, "state")))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(d.logPath)
	if err != nil {
		return nil, err
	}
	d.cmd = exec.Command(filepath.Join(o.bin, "shepherdd"), "-c", config)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only the demo
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := d.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start shepherdd: %w (make build makes it)", err), log.Close())
	}
	served := make(chan struct{})
	go d.watch(stderr, log, served)
	select {
	case <-served:
		return d, nil
	case <-d.exited:
		return nil, fmt.Errorf("shepherdd has ended: %w; its log is %s", d.err, d.logPath)
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("shepherdd does not serve after %v; its log is %s", startTime, d.logPath), d.stop())
	}
}

// watch writes the daemon's log to a file, learns its addresses from it and
// notes its end.
func (d *daemon) watch(stderr io.Reader, log *os.File, served chan<- struct{}) {
	lines := bufio.NewScanner(io.TeeReader(stderr, log))
	for lines.Scan() {
		_, message, _ := strings.Cut(lines.Text(), "@shepherd       : ")
		if at, ok := strings.CutPrefix(message, "Embedded storage is available at "); ok {
			d.storage, _, _ = strings.Cut(at, " ")
		}
		if at, ok := strings.CutPrefix(message, "Shepherd API is available at "); ok {
			d.api = at
			close(served)
		}
	}
	d.err = errors.Join(lines.Err(), d.cmd.Wait(), log.Close())
	if d.err == nil {
		d.err = errors.New("it stopped by itself")
	}
	close(d.exited)
}

// stop asks the daemon to stop and waits until it has.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop shepherdd: %w", err)
	}
	select {
	case <-d.exited:
	case <-time.After(startTime):
		return fmt.Errorf("shepherdd does not stop; its log is %s", d.logPath)
	}
	if !d.cmd.ProcessState.Success() {
		return fmt.Errorf("shepherdd ended with %v; its log is %s", d.cmd.ProcessState, d.logPath)
	}
	return nil
}

// quote returns any path as a YAML scalar; an unquoted `$` would be a reference to the
// environment.
func quote(path string) string { return "'" + strings.ReplaceAll(path, "'", "''") + "'" }

func randomKey() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
