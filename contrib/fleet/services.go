package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/iterait/shepherd/internal/port"
)

// service is a program that runs until it is asked to stop.
type service struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// start starts a program whose log goes to a file and, where there is one, to a reader,
// which is read to its end.
func start(cmd *exec.Cmd, log string, read func(io.Reader)) (*service, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	s := &service{cmd: cmd, log: log, exited: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only the demo
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	go func() {
		defer close(s.exited)
		defer file.Close()
		all := io.TeeReader(stderr, file)
		if read != nil {
			read(all)
		}
		_, _ = io.Copy(io.Discard, all) // a missing part is visible in the log
		_ = cmd.Wait()                  // how it ended is in its state
	}()
	return s, nil
}

// stop asks the program to stop and waits for it. It ignores a program that has exited.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.cmd.Path, err)
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(startTime):
		return fmt.Errorf("%s does not stop; its log is %s", s.cmd.Path, s.log)
	}
}

// storage is a MinIO server.
type storage struct {
	*service
	url, accessKey, secretKey string
}

func startStorage(ctx context.Context, o options) (*storage, error) {
	at, err := port.Free("127.0.0.1")
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", at)
	s := &storage{url: "http://" + address, accessKey: "fleet", secretKey: rand.Text()}
	cmd := exec.Command(o.minio, "server", "--quiet", "--address", address, filepath.Join(o.dir, "minio"))
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.accessKey, "MINIO_ROOT_PASSWORD="+s.secretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off")
	if s.service, err = start(cmd, filepath.Join(o.dir, "minio.log"), nil); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for !healthy(ctx, s.url+"/minio/health/ready") {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-s.exited:
			return nil, fmt.Errorf("it has ended (%v); its log is %s", s.cmd.ProcessState, s.log)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("it is not ready after %v; its log is %s", startTime, s.log), s.stop())
		}
	}
	return s, nil
}

// healthy reports whether a URL answers with success.
func healthy(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}
