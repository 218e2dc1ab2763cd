package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/sandbox"
)

// The command serves both on the addresses it prints and ends when it is told
// to.
func TestSandboxCommand(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	output, printed := io.Pipe()
	c := sandboxCommand()
	c.SetArgs([]string{"--dir", t.TempDir(), "--storage-port", "0", "--registry-port", "0"})
	c.SetOut(printed)
	c.SetErr(io.Discard)
	ended := make(chan error, 1)
	go func() {
		err := c.ExecuteContext(ctx)
		printed.Close()
		ended <- err
	}()
	var text strings.Builder
	for lines := bufio.NewScanner(output); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	go io.Copy(io.Discard, output)
	found := regexp.MustCompile(`at http://(127\.0\.0\.1:\d+)`).FindAllStringSubmatch(text.String(), -1)
	if len(found) != 2 || !strings.Contains(text.String(), sandbox.AccessKey) || !strings.Contains(text.String(), sandbox.SecretKey) {
		t.Fatalf("it prints no two addresses and the keys:\n%s", text.String())
	}
	for i, want := range []struct {
		path   string
		status int
	}{{"/", 403}, {"/v2/", 200}} { // the storage knows nobody without the keys
		resp, err := http.Get("http://" + found[i][1] + want.path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want.status {
			t.Errorf("%s: %s", found[i][0], resp.Status)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended by a signal: %v", err)
	}
}

func TestSandboxPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := sandboxCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs([]string{"--dir", t.TempDir(), "--storage-port", "0", "--registry-port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port)})
	c.SetOut(io.Discard)
	err = c.ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "--registry-port") {
		t.Errorf("a port in use: %v", err)
	}
}
