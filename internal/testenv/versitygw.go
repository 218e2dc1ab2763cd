package testenv

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// versityModule is what `make test` installs into .cache/bin.
const versityModule = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// StartVersityGW starts an S3 gateway over a directory, which ends with the test.
// The program is `versitygw` on PATH, else .cache/bin/versitygw below the
// module's root.
func StartVersityGW(t testing.TB) (url, accessKey, secretKey string) {
	t.Helper()
	program, err := exec.LookPath("versitygw")
	if err != nil {
		program = filepath.Join(moduleRoot(t), ".cache", "bin", "versitygw")
	}
	if _, err := os.Stat(program); err != nil {
		Missing(t, "versitygw", "run `make test`, or GOBIN=$PWD/.cache/bin go install "+versityModule)
	}
	accessKey, secretKey = "shepherd-test", "shepherd-test-secret"
	addr := "127.0.0.1:" + strconv.Itoa(FreePort(t))
	log, err := os.Create(filepath.Join(t.TempDir(), "versitygw.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--access", accessKey, "--secret", secretKey, "--port", addr, "--quiet", "posix", t.TempDir())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		log.Close()
	})
	limit := time.After(time.Minute)
	for {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return "http://" + addr, accessKey, secretKey
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("versitygw exited while it started:\n%s", text)
		case <-limit:
			t.Fatal("versitygw does not listen after a minute")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
