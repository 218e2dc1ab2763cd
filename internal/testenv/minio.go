package testenv

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// minioModule is what `make test` installs into .cache/bin.
const minioModule = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"

// MinIO is a separate MinIO server for a test, on a loopback port with an empty folder. It can
// be stopped and started again on the same port and data, as in an outage.
type MinIO struct {
	URL       string
	AccessKey string
	SecretKey string

	t       testing.TB
	env     []string
	program string
	dir     string
	addr    string
	log     string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// StartMinIO starts a server that ends with the test, with more variables in its
// environment, each NAME=VALUE. The program is MinIOProgram's.
func StartMinIO(t testing.TB, env ...string) *MinIO {
	t.Helper()
	dir := t.TempDir()
	addr := "127.0.0.1:" + strconv.Itoa(FreePort(t))
	m := &MinIO{
		URL: "http://" + addr, AccessKey: "shepherd-test", SecretKey: "shepherd-test-secret",
		t: t, env: env, program: MinIOProgram(t), dir: filepath.Join(dir, "data"), addr: addr, log: filepath.Join(dir, "minio.log"),
	}
	t.Cleanup(m.Stop)
	m.Start()
	return m
}

// Pid returns the server's process id, 0 when it is stopped.
func (m *MinIO) Pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return 0
	}
	return m.cmd.Process.Pid
}

// Start starts the server unless it runs, and returns when it is ready.
func (m *MinIO) Start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return
	}
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(m.program, "server", "--quiet", "--address", m.addr,
		"--console-address", "127.0.0.1:"+strconv.Itoa(FreePort(m.t)), m.dir)
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+m.AccessKey, "MINIO_ROOT_PASSWORD="+m.SecretKey,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off")
	cmd.Env = append(cmd.Env, m.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", m.program, err)
	}
	m.cmd, m.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait() // its log has the reason
		close(exited)
	}(m.exited)
	if err := m.ready(); err != nil {
		output, _ := os.ReadFile(m.log)
		m.t.Fatalf("MinIO: %v\n%s", err, output)
	}
}

// ready asks the health URL until it answers, and then for a bucket until that
// is created: for a moment a server that reports ready still answers with
// XMinioServerNotInitialized.
func (m *MinIO) ready() error {
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	buckets, err := minio.New(strings.TrimPrefix(m.URL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(m.AccessKey, m.SecretKey, ""), Transport: transport, MaxRetries: 1,
	})
	if err != nil {
		return err
	}
	limit := time.After(3 * time.Minute)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		answer, err := client.Get(m.URL + "/minio/health/ready")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				err = errors.Join(
					buckets.MakeBucket(m.t.Context(), "ready", minio.MakeBucketOptions{}),
					buckets.RemoveBucket(m.t.Context(), "ready"))
			} else {
				err = errors.New(answer.Status)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-m.exited:
			return errors.New("exited while it started")
		case <-limit:
			return fmt.Errorf("not ready after three minutes: %w", err)
		case <-again.C:
		}
	}
}

// Stop stops the server and waits until it has exited. It does nothing if the server is
// stopped.
func (m *MinIO) Stop() { m.end(syscall.SIGTERM) }

// Kill kills the server, like a crash.
func (m *MinIO) Kill() { m.end(syscall.SIGKILL) }

func (m *MinIO) end(signal syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(signal) // it may have exited by itself
	select {
	case <-m.exited:
	case <-time.After(time.Minute):
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	m.cmd = nil
}

// MinIOProgram returns the path of MinIO: the one that SHEPHERD_TEST_MINIO names, else
// `minio` on PATH, else .cache/bin/minio below the module's root.
func MinIOProgram(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("SHEPHERD_TEST_MINIO"); path != "" {
		return path
	}
	if path, err := exec.LookPath("minio"); err == nil {
		return path
	}
	if path := filepath.Join(moduleRoot(t), ".cache", "bin", "minio"); exec.Command(path, "--version").Run() == nil {
		return path
	}
	Missing(t, "MinIO", "run `make test`, or GOBIN=$PWD/.cache/bin go install "+minioModule)
	return ""
}
