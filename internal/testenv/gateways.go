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

// The keys of the S3 servers over a directory.
const gatewayAccessKey, gatewaySecretKey = "shepherd-test", "shepherd-test-secret"

// StartVersityGW starts the Versity S3 Gateway over a directory, which ends with the
// test. The program is `versitygw` on PATH, else .cache/bin/versitygw below the
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
	addr := loopback(t)
	return startGateway(t, addr, program, "--access", gatewayAccessKey, "--secret", gatewaySecretKey, "--port", addr, "--quiet", "posix", t.TempDir())
}

// StartRcloneS3 starts `rclone serve s3` over a directory, which ends with the test.
// The program is .cache/bin/rclone below the module's root, which is built from
// test/rclone: that of Debian 12 does not serve S3.
func StartRcloneS3(t testing.TB) (url, accessKey, secretKey string) {
	t.Helper()
	program := filepath.Join(moduleRoot(t), ".cache", "bin", "rclone")
	if _, err := os.Stat(program); err != nil {
		Missing(t, "rclone", "run `make test`, or `make .cache/bin/rclone`")
	}
	addr := loopback(t)
	return startGateway(t, addr, program, "serve", "s3", "--config", os.DevNull, "--auth-key", gatewayAccessKey+","+gatewaySecretKey, "--addr", addr, t.TempDir())
}

// S5cmd returns the program s5cmd: .cache/bin/s5cmd below the module's root, which is
// built from test/s5cmd.
func S5cmd(t testing.TB) string {
	t.Helper()
	program := filepath.Join(moduleRoot(t), ".cache", "bin", "s5cmd")
	if _, err := os.Stat(program); err != nil {
		Missing(t, "s5cmd", "run `make .cache/bin/s5cmd`")
	}
	return program
}

// loopback is an address of this machine on which no process listens.
func loopback(t testing.TB) string {
	return "127.0.0.1:" + strconv.Itoa(FreePort(t))
}

// startGateway runs a program that serves S3 at the address, until the test ends.
func startGateway(t testing.TB, addr, program string, args ...string) (url, accessKey, secretKey string) {
	t.Helper()
	name := filepath.Base(program)
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log has the reason
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", name, text[max(0, len(text)-4096):])
		}
	})
	limit := time.After(3 * time.Minute)
	for {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return "http://" + addr, gatewayAccessKey, gatewaySecretKey
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("%s exited while it started:\n%s", name, text)
		case <-limit:
			t.Fatalf("%s does not listen after three minutes", name)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
