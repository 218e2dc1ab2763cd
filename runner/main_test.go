package runner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runner"
)

// loadForTest is the load function of this test binary as a runner.
func loadForTest(_ context.Context, args runner.Args) (runner.Handler, error) {
	if args.ConfigPath == "broken/config.yaml" {
		return nil, errors.New("no weights")
	}
	return func(_ context.Context, j runner.Job) error {
		return os.WriteFile(j.Output(), fmt.Appendf(nil, "%+v", args), 0o644)
	}, nil
}

func mainCommand(t *testing.T, args ...string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "RUNNER_TEST_MAIN=1")
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	return cmd, stderr
}

func TestMainServesUntilTerminated(t *testing.T) {
	port := testenv.FreePort(t)
	cmd, stderr := mainCommand(t, "-r", "some.Runner", "digits/v1/config.yaml", "--stream=train", "-p", strconv.Itoa(port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := connect(t, port)
	a.send("one")
	a.done("one")
	got, err := os.ReadFile(a.root + "/one/outputs/output")
	want := fmt.Sprintf("{ConfigPath:digits/v1/config.yaml Port:%d Stream:train Runner:some.Runner}", port)
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v; expected %s", got, err, want)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("after SIGTERM: %v\n%s", err, stderr)
	}
}

func TestMainExitCodes(t *testing.T) {
	a, _ := serve(t, nil)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "Usage: "},
		{[]string{"--no-such-flag"}, 2, "no-such-flag"},
		{[]string{"-p", "many"}, 2, "many"},
		{[]string{"-p", "70000"}, 2, "port 70000"},
		{[]string{"one", "two"}, 2, "expected one CONFIG_PATH"},
		{[]string{"-p9", "broken/config.yaml"}, messenger.ExitLoad, "load the model: no weights"},
		{[]string{"-p", strconv.Itoa(a.port)}, 1, "address already in use"},
	} {
		cmd, stderr := mainCommand(t, c.args...)
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%q: exit code %d, %q; expected %d with %q", c.args, code, stderr, c.code, c.want)
		}
	}
}
