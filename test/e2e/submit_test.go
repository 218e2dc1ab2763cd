package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

// client runs commands of users against the daemon of a world.
type client struct {
	w       *world
	program string // shepherd, which has the client's commands alone, or shepherdd
	env     []string
}

// output is what a command has printed, and how it ended.
type output struct {
	code        int
	out, errors string
}

func (c *client) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, c.program), args...)
	cmd.Dir = c.w.dir
	cmd.Env = append(c.w.env, c.env...)
	return cmd
}

// run runs a command with a text as its standard input.
func (c *client) run(stdin string, args ...string) output {
	c.w.t.Helper()
	cmd := c.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		c.w.t.Fatal(err)
	}
	return output{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// expect runs a command and checks its exit code, and that what it prints contains
// texts.
func (c *client) expect(code int, stdin string, args []string, texts ...string) output {
	c.w.t.Helper()
	o := c.run(stdin, args...)
	if o.code != code {
		c.w.t.Errorf("%s %q: exit code %d, want %d\n%s%s", c.program, args, o.code, code, o.out, o.errors)
	}
	for _, text := range texts {
		if !strings.Contains(o.out+o.errors, text) {
			c.w.t.Errorf("%s %q: no %q in\n%s%s", c.program, args, text, o.out, o.errors)
		}
	}
	return o
}

// newClient starts a daemon whose model `files` runs a shell command with each job:
// it copies the inputs to the outputs, fails where there is an input `fail`, and waits
// for the file `gate` where there is an input `wait`.
func newClient(t *testing.T, program string, change ...func(*world)) *client {
	w := emptyWorld(t, "sheep")
	for _, c := range change {
		c(w)
	}
	w.edit("    type: bare\n", fmt.Sprintf("    type: bare\n    command: [%q, \"-p\", \"{port}\", \"{config}\"]\n", programs+"/shepherd-runner"))
	write(t, w.dir+"/models/files/v1/config.yaml", fmt.Sprintf("command: [sh, -c, '"+
		"if [ -e {inputs}/fail ]; then echo broken >&2; exit 3; fi; "+
		"if [ -e {inputs}/wait ]; then echo waits; while ! [ -e %s ]; do sleep 0.02; done; fi; "+
		"echo works on {job}; cp -r {inputs}/. {outputs}/']\n", w.dir+"/gate"))
	w.start()
	return &client{w: w, program: program, env: []string{"SHEPHERD_SERVER=" + w.api, "XDG_CONFIG_HOME=" + w.dir + "/home", "TERM=dumb"}}
}

func args(words ...string) []string { return words }

// TestSubmit submits jobs with one command instead of an S3 client and curl.
func TestSubmit(t *testing.T) {
	c := newClient(t, "shepherd")
	dir := c.w.dir
	names := []string{"a.txt", "sub/b.txt", `sub/with "quotes" and ü.txt`}
	for _, name := range names {
		write(t, filepath.Join(dir, "in", name), "content of "+name)
	}

	// A directory of inputs, a directory of outputs, and the progress, without a terminal.
	c.expect(0, "", args("submit", "files:v1", "in", "-o", "out", "--id", "first", "--label", "batch=1"), "upload: ", "download: ")
	for _, name := range names {
		if text, err := os.ReadFile(filepath.Join(dir, "out", name)); string(text) != "content of "+name || err != nil {
			t.Errorf("%s came back as %q, %v", name, text, err)
		}
	}
	// A file by another name, with others; without -o the command prints the next step.
	c.expect(0, "", args("submit", "files:v1", "x/y=in/a.txt", "in/sub/b.txt", "-q", "--id", "second"), "second is done, with 2 outputs, 36 B; fetch them with `shepherd result second -o DIR`")
	if o := c.expect(0, "", args("result", "second", "x/y")); o.out != "content of a.txt" {
		t.Errorf("the file is %q", o.out)
	}
	// A pipe.
	if o := c.expect(0, "through a pipe", args("submit", "files:v1", "-")); o.out != "through a pipe" {
		t.Errorf("the pipe gives %q", o.out)
	}
	// Another job's outputs, not waited for.
	if o := c.expect(0, "", args("submit", "files:v1", "--from", "first:outputs/sub/", "--id", "third", "--no-wait", "-o", "name")); o.out != "third\n" {
		t.Errorf("printed %q", o.out)
	}
	c.expect(0, "", args("wait", "third"), "JOB ", "third  done   files:v1")
	c.expect(0, "", args("result", "third", "-l"), "NAME", "b.txt                    20")
	c.expect(2, "", args("result", "third"), "job third has several outputs")

	// Failures say why, and how: by the exit code.
	c.expect(3, "x", args("submit", "files:v1", "fail=-", "--id", "bad"), "job bad has failed", "What to do: ")
	c.expect(3, "", args("wait", "bad", "-q"), "has failed")
	c.expect(3, "", args("result", "bad"), "has failed")
	c.expect(5, "", args("status", "nobody"), "does not exist")
	c.expect(5, "", args("result", "first", "nothing"), "job first has no output nothing; it has a.txt, sub/b.txt")
	c.expect(8, "", args("cancel", "bad"), "has ended already")
	c.expect(6, "", args("ls", "--server", "http://127.0.0.1:1"), "no daemon answers at http://127.0.0.1:1")
	c.expect(2, "", args("submit", "files:v1", "absent"), "no file or directory absent")
	c.expect(2, "", args("submit", "files:v1", "in/a.txt", "a.txt=in/sub/b.txt"), "two inputs have the name a.txt")
	c.expect(2, "", args("submit"), "a model is needed")
	c.expect(2, "", args("ls", "-o", "xml"), "none of table")

	// Lists.
	if o := c.expect(0, "", args("ls", "-o", "name", "--prefix", "th")); o.out != "third\n" {
		t.Errorf("listed %q", o.out)
	}
	c.expect(0, "", args("ls", "--label", "batch=1", "-o", "jsonl"), `{"after":[],"attempt":1,`, `"job_id":"first"`)
	c.expect(0, "", args("status", "first"), "State:      done", "Label:      batch=1")
	c.expect(0, "", args("status", "first", "-o", "wide"), "ended    1        sheep")
	c.expect(0, "", args("logs", "first"), "works on first")
	c.expect(0, "", args("explain", "bad"), "What to do: ")
	c.expect(0, "", args("events", "first"), "queued    first", "ended     first  done")
	c.expect(0, "", args("events", "-o", "name"), "bad\n")
	c.expect(0, "", args("events", "first", "-f"), "ended     first")
	c.expect(0, "", args("retry", "first"), "first is queued")
	c.expect(0, "", args("wait", "first", "third"), "JOB    STATE", "first  done", "third  done")

	// Completion.
	c.expect(0, "", args("__complete", "status", "se"), "second\tdone, files:v1")
	c.expect(0, "", args("__complete", "submit", ""), "files:v1")
	c.expect(0, "", args("__complete", "ls", "--sheep", ""), "sheep\n")
}

// TestSubmitLarge uploads directly to storage, the embedded one, MinIO and rclone's, and
// through the daemon if clients cannot reach the storage.
func TestSubmitLarge(t *testing.T) {
	const size = 70 << 20
	for _, storage := range []string{"embedded", "minio", "rclone", "unreachable"} {
		t.Run(storage, func(t *testing.T) {
			c := newClient(t, "shepherd", func(w *world) {
				elsewhere := func(url, access, secret string) {
					w.edit(fmt.Sprintf("  listen: 127.0.0.1:0\n  access_key: %s\n  secret_key: %s\n", accessKey, secretKey),
						fmt.Sprintf("  url: %q\n  access_key: %s\n  secret_key: %s\n", url, access, secret))
				}
				switch storage {
				case "minio":
					minio := testenv.StartMinIO(t)
					elsewhere(minio.URL, minio.AccessKey, minio.SecretKey)
				case "rclone":
					elsewhere(testenv.StartRcloneS3(t))
				case "unreachable":
					w.edit("  listen: 127.0.0.1:0\n", "  listen: 127.0.0.1:0\n  public_url: http://127.0.0.1:1\n")
				}
			})
			write(t, c.w.dir+"/in/large", "begin")
			if err := os.Truncate(c.w.dir+"/in/large", size); err != nil {
				t.Fatal(err)
			}
			write(t, c.w.dir+"/in/small", "small")
			o := c.expect(0, "", args("submit", "files:v1", "in", "-o", "out"), "upload: ")
			if through := strings.Contains(o.errors, "go through the daemon"); through != (storage == "unreachable") {
				t.Errorf("it says\n%s", o.errors)
			}
			c.w.logged(`Place reserved for an upload.*files=2`)
			info, err := os.Stat(c.w.dir + "/out/large")
			if small, readErr := os.ReadFile(c.w.dir + "/out/small"); err != nil || info.Size() != size || string(small) != "small" {
				t.Errorf("%+v, %v, %q, %v", info, err, small, readErr)
			}
			if storage != "unreachable" {
				return
			}
			if status, body := c.w.request("POST", "/uploads", `{"files": [{"path": "a", "size": 1}], "job_id": "left"}`); status != 201 {
				t.Errorf("%d %s", status, body)
			}
			for _, want := range []int{200, 404} {
				if status, body := c.w.request("DELETE", "/uploads/left", ""); status != want {
					t.Errorf("%d %s", status, body)
				}
			}
		})
	}
}

// TestResumeLarge interrupts a command in the middle of a large upload, which has an id: the
// same command sends what is missing, and no part twice.
func TestResumeLarge(t *testing.T) {
	const size = 66 << 20 // in 3 parts
	var proxy *testenv.S3Proxy
	c := newClient(t, "shepherd", func(w *world) {
		port := testenv.FreePort(t)
		proxy = testenv.StartS3Proxy(t, fmt.Sprintf("http://127.0.0.1:%d", port))
		w.edit("  listen: 127.0.0.1:0\n", fmt.Sprintf("  listen: 127.0.0.1:%d\n  public_url: %q\n", port, proxy.URL))
	})
	write(t, c.w.dir+"/large", "begin")
	if err := os.Truncate(c.w.dir+"/large", size); err != nil {
		t.Fatal(err)
	}
	proxy.Inject(testenv.Stall, -1, func(r *http.Request) bool { return r.Method == "PUT" && r.URL.Query().Get("partNumber") > "1" })
	submit := args("submit", "files:v1", "large", "-o", "out", "--id", "resumed")
	cmd := c.command(submit...)
	said := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.w.eventually("a part is in storage, and the others are on their way", func() bool {
		_, body := c.w.request("POST", "/uploads/resumed/addresses", "")
		var upload struct {
			Files []struct{ Parts []struct{ Number int } }
		}
		return json.Unmarshal([]byte(body), &upload) == nil && len(upload.Files) == 1 && len(upload.Files[0].Parts) == 2
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d\n%s", code, said)
	}
	proxy.Heal()
	proxy.Reset()
	c.expect(0, "", submit, "upload: ")
	var again []string
	for _, request := range proxy.Requests() {
		if _, query, _ := strings.Cut(request, "partNumber="); query != "" {
			number, _, _ := strings.Cut(query, "&")
			again = append(again, number)
		}
	}
	slices.Sort(again)
	if !slices.Equal(again, []string{"2", "3"}) {
		t.Errorf("the second time parts %s were sent", again)
	}
	if info, err := os.Stat(c.w.dir + "/out/large"); err != nil || info.Size() != size {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestInterrupt interrupts a client that waits.
func TestInterrupt(t *testing.T) {
	c := newClient(t, "shepherdd")
	start := func(id string, more ...string) (*exec.Cmd, *lockedBuffer) {
		t.Helper()
		cmd := c.command(append([]string{"submit", "-c", c.w.config, "files:v1", "wait=-", "--id", id}, more...)...)
		cmd.Stdin = strings.NewReader("x")
		said := &lockedBuffer{}
		cmd.Stdout, cmd.Stderr = said, said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.w.eventually("it is seen that the job runs", func() bool { return strings.Contains(said.String(), "\nrun") })
		return cmd, said
	}
	interrupt := func(cmd *exec.Cmd, said *lockedBuffer, code int, text string) {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit code says it
		if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(said.String(), text) {
			t.Errorf("exit code %d, want %d, and %q in\n%s", got, code, text, said)
		}
	}
	// There is no terminal to ask: the job continues.
	cmd, said := start("left")
	interrupt(cmd, said, 130, "Job left goes on: `shepherdd wait left` waits for it")
	c.expect(9, "", args("wait", "left", "--timeout", "1ms", "-c", c.w.config), "has not ended")
	c.expect(8, "", args("result", "left", "-c", c.w.config), "has not ended")
	write(t, c.w.dir+"/gate", "")
	c.expect(0, "", args("wait", "left", "-c", c.w.config), "left  done")
	if err := os.Remove(c.w.dir + "/gate"); err != nil {
		t.Fatal(err)
	}
	cmd, said = start("ended", "--on-interrupt", "cancel")
	interrupt(cmd, said, 4, "job ended was cancelled")

	// The client waits for a daemon that is killed and restarted.
	cmd, said = start("kept", "-o", "out")
	c.w.kill()
	c.w.start()
	write(t, c.w.dir+"/gate", "")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
	if text, err := os.ReadFile(c.w.dir + "/out/wait"); string(text) != "x" || err != nil {
		t.Errorf("the output is %q, %v", text, err)
	}
}

// TestLogin stores a daemon's address and token for later commands.
func TestLogin(t *testing.T) {
	c := newClient(t, "shepherd")
	c.w.stop()
	var entry bytes.Buffer
	made := exec.Command(programs+"/shepherdd", "token", "new", "--name", "lab")
	made.Stderr = &entry
	secret, err := made.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(entry.String(), "\n\n")
	c.w.edit("  port: 0\n", "  port: 0\n  tokens:\n"+lines)
	c.w.start()
	c.env = []string{"XDG_CONFIG_HOME=" + c.w.dir + "/home", "SHEPHERD_SERVER="}
	c.expect(7, "wrong\n", args("login", c.w.api))
	c.expect(2, "", args("login", c.w.api), "no token")
	c.expect(0, string(secret), args("login", c.w.api, "--name", "lab"), "Commands ask "+c.w.api+" now")
	c.expect(0, "", args("ls"), "JOB")
	c.expect(0, "", args("contexts"), "*     lab")
	info, err := os.Stat(c.w.dir + "/home/shepherd/contexts.json")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the token: %v, %v", info, err)
	}
	c.expect(7, "", args("ls", "--server", c.w.api), "token")
	c.expect(0, "", args("ls", "--context", "lab"), "JOB")
	c.expect(0, "", args("contexts", "use"))
	c.expect(2, "", args("ls"), "a daemon's address is needed")
	c.expect(0, "", args("contexts", "use", "lab"))
	c.expect(0, "", args("logout"), "is forgotten")
	c.expect(2, "", args("ls", "--context", "lab"), `there is no context "lab"`)
}

// TestTerminal submits a job at a terminal: it shows bars, and Ctrl-C asks.
func TestTerminal(t *testing.T) {
	c := newClient(t, "shepherd")
	terminal, side := openTerminal(t)
	screen := &lockedBuffer{}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		_, _ = io.Copy(screen, terminal) // ends with the terminal
	}()
	cmd := c.command("submit", "files:v1", "wait=models/files/v1/config.yaml", "--id", "typed", "-o", "out")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = side, side, side
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	side.Close()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the terminal shows %q", screen)
		}
	})
	sees := func(what string) {
		t.Helper()
		c.w.eventually("the terminal shows "+what, func() bool { return strings.Contains(screen.String(), what) })
	}
	keys := func(text string) {
		t.Helper()
		if _, err := io.WriteString(terminal, text); err != nil {
			t.Fatal(err)
		}
	}
	sees("upload")
	sees("run")
	keys("\x03")
	sees("Cancel job typed?")
	keys("w\n")
	c.w.eventually("it shows the job again", func() bool {
		_, later, _ := strings.Cut(screen.String(), "Cancel job typed?")
		return strings.Contains(later, "run  ")
	})
	keys("\x03")
	c.w.eventually("it asks again", func() bool { return strings.Count(screen.String(), "Cancel job typed?") == 2 })
	keys("y\n")
	_ = cmd.Wait() // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("exit code %d", code)
	}
	sees("job typed was cancelled")
	terminal.Close()
	<-shown
}

// openTerminal makes a terminal: the side that a person has, and that of the program.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	connection, err := person.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	failed := connection.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
		}
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}
