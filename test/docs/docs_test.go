// Package docs runs the commands in the documentation in a network namespace, and compares
// their output with the documented one.
package docs

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

var update = flag.Bool("update", false, "write what commands print into the documents")

// guard bounds one command: a hang guard.
const guard = 2 * time.Minute

// bin is where TestMain builds the programs.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "docs-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		// As in the tutorial, with another directory for the programs.
		build := exec.Command("make", "--no-print-directory", "-C", "../..", "build", "BIN="+dir)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// A block is fenced text of a document.
//
//	console         commands after "$ ", with further lines after "> ", and what they print
//	console daemon  the same, left running in the background
//	console cog     either, where there are containerd, and cog and docker or who stands in
//	LANGUAGE FILE   the content of a file
//
// Other blocks are not run.
type block struct {
	info     string
	commands []command
	text     string
	line     int // of the fence, counted from 0
}

type command struct {
	typed    string
	expected []string
	from, to int // the lines of what is expected, counted from 0
}

func parse(source string) (blocks []block) {
	var open *block
	for i, line := range strings.Split(source, "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &block{info: info, line: i}
		case fence:
			blocks, open = append(blocks, *open), nil
		case open == nil:
		case !strings.HasPrefix(open.info, "console"):
			open.text += line + "\n"
		default:
			last := len(open.commands) - 1
			if typed, ok := strings.CutPrefix(line, "$ "); ok {
				open.commands = append(open.commands, command{typed: typed, from: i + 1, to: i + 1})
			} else if more, ok := strings.CutPrefix(line, "> "); ok && last >= 0 && len(open.commands[last].expected) == 0 {
				c := &open.commands[last]
				c.typed, c.from, c.to = c.typed+"\n"+more, i+1, i+1
			} else if last >= 0 {
				c := &open.commands[last]
				c.expected, c.to = append(c.expected, line), i+1
			}
		}
	}
	return blocks
}

// session is a shell in a directory with only bin and examples, in a network namespace. All
// processes started in it end with it.
type session struct {
	t   *testing.T
	dir string
	cog bool // it runs only the blocks of cog
	in  io.WriteCloser
	out chan string // lines
}

func newSession(t *testing.T) *session {
	t.Helper()
	unshare := testenv.Command(t, "unshare", "util-linux")
	testenv.Command(t, "curl", "curl")
	testenv.Python(t, "zmq", "python3-zmq")
	dir, err := os.MkdirTemp("", "docs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for from, to := range map[string]string{"../../examples": "examples", "../../contrib/python/src": "contrib/python/src"} {
		if err := os.CopyFS(filepath.Join(dir, to), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if os.Getuid() != 0 {
		args = append(args, "--map-root-user")
	}
	shell := exec.Command(unshare, append(args, "bash", "--norc")...)
	shell.Dir = dir
	shell.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + dir, "LC_ALL=C.UTF-8", "TMPDIR=" + dir}
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	shell.Stdout, shell.Stderr = writer, writer
	shell.WaitDelay = 10 * time.Second
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, dir: dir, in: in, out: make(chan string)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(s.out)
		lines := bufio.NewReader(reader)
		for {
			line, err := lines.ReadString('\n')
			if line != "" {
				s.out <- line
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		in.Close()
		ended := make(chan error, 1)
		go func() { ended <- errors.Join(shell.Wait(), writer.Close()) }()
		for range s.out { // what is printed at the end
		}
		<-read
		<-ended // by what was told to end
	})
	s.must("ip link set lo up && mount --bind " + bin + " bin")
	return s
}

// end marks the end of a command's output, before its exit code.
const end = "\x1eended "

// run runs a command and returns what it printed, and its exit code.
func (s *session) run(typed string) (string, int) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.in, "%s\nended=$?; printf '%s%%d\\n' $ended; (exit $ended)\n", typed, end); err != nil {
		s.t.Fatal(err)
	}
	var printed strings.Builder
	timeout := time.NewTimer(guard)
	defer timeout.Stop()
	for {
		select {
		case line, ok := <-s.out:
			if !ok {
				s.t.Fatalf("the shell has ended at %s: %s", typed, printed.String())
			}
			before, code, found := strings.Cut(line, end)
			printed.WriteString(before)
			if found {
				n, err := strconv.Atoi(strings.TrimSpace(code))
				if err != nil {
					s.t.Fatal(err)
				}
				return printed.String(), n
			}
		case <-timeout.C:
			s.t.Fatalf("%s does not end: %s", typed, printed.String())
		}
	}
}

// apart gives the session a private /tmp, for configurations that use it.
func (s *session) apart() {
	s.t.Helper()
	s.must("mount --rbind . /mnt && cd /mnt && mount -t tmpfs tmpfs /tmp && export TMPDIR=/tmp HOME=/mnt")
}

// must runs a command that has to succeed.
func (s *session) must(typed string) {
	s.t.Helper()
	if printed, code := s.run(typed); code != 0 {
		s.t.Fatalf("%s: %d: %s", typed, code, printed)
	}
}

// background runs a command whose output goes to a file, and returns when it has printed the
// last expected line.
func (s *session) background(c command) {
	s.t.Helper()
	file := fmt.Sprintf("background-%d", time.Now().UnixNano())
	s.run(c.typed + " >" + file + " 2>&1 &")
	for deadline := time.Now().Add(guard); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(s.dir, file))
		if err == nil {
			lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
			if differ(append(slices.Clone(c.expected), "…"), lines) == "" {
				return
			}
		}
		if _, gone := s.run("kill -0 $!"); gone != 0 || time.Now().After(deadline) {
			s.t.Fatalf("%s does not print what is written, but\n%s", c.typed, text)
		}
	}
}

var volatile = []struct {
	what *regexp.Regexp
	is   string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`), "TIME"},
	{regexp.MustCompile(`\bjob-[a-z2-7]{26}\b`), "JOB"},
	{regexp.MustCompile(`\b\d+(\.\d+)? ?(ms|s)\b`), "DURATION"},
	{regexp.MustCompile(`docs-\d+`), "DIR"},
	{regexp.MustCompile(`outputs-\d+`), "outputs"},
	{regexp.MustCompile(`\bpid[= ]\d+`), "PID"},
	{regexp.MustCompile(`\bis (queued|processing|done)$`), "is STATE"}, // a job continues meanwhile
	{regexp.MustCompile(` {2,}`), "  "},                                // columns are as wide as ids are
}

// pattern returns the pattern of a line: times, generated ids and durations match any, and an
// ellipsis matches any text.
func pattern(line string) *regexp.Regexp {
	parts := strings.Split(normal(line), "…")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
}

func normal(line string) string {
	for _, v := range volatile {
		line = v.what.ReplaceAllString(line, v.is)
	}
	return strings.TrimRight(line, " ")
}

// differ describes how the lines differ from the expected ones; "" if they do not. A line
// that is an ellipsis matches any number of lines.
func differ(expected, got []string) string {
	for len(expected) > 0 {
		if strings.TrimSpace(expected[0]) == "…" {
			for skip := 0; skip <= len(got); skip++ {
				if differ(expected[1:], got[skip:]) == "" {
					return ""
				}
			}
			return fmt.Sprintf("after an ellipsis there is nothing like %q", expected[1:])
		}
		if len(got) == 0 {
			return fmt.Sprintf("%q is missing", expected[0])
		}
		if !pattern(expected[0]).MatchString(normal(got[0])) {
			return fmt.Sprintf("instead of %q there is %q", expected[0], got[0])
		}
		expected, got = expected[1:], got[1:]
	}
	if len(got) > 0 {
		return fmt.Sprintf("%q is not written", got[0])
	}
	return ""
}

// follow runs all commands of a document. With -update it replaces outputs that differ.
func (s *session) follow(file string) {
	s.t.Helper()
	name := filepath.Base(file)
	source, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	lines := strings.Split(string(source), "\n")
	type change struct {
		from, to int
		lines    []string
	}
	var changes []change
	ran := 0
	for _, b := range parse(string(source)) {
		language, to, _ := strings.Cut(b.info, " ")
		if language != "console" && to != "" {
			path := filepath.Join(s.dir, to)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(b.text), 0o644)); err != nil {
				s.t.Fatal(err)
			}
		}
		kind, cog := strings.CutPrefix(to, "cog")
		if cog {
			to = strings.TrimSpace(kind)
		}
		if cog != s.cog {
			continue
		}
		for _, c := range b.commands {
			ran++
			if to == "daemon" {
				s.background(c)
				continue
			}
			printed, code := s.run(c.typed)
			var got []string
			if printed = strings.TrimRight(printed, "\n"); printed != "" {
				got = strings.Split(printed, "\n")
			}
			wrong := differ(c.expected, got)
			switch {
			case wrong != "" && *update:
				changes = append(changes, change{c.from, c.to, got})
			case wrong != "":
				s.t.Errorf("%s:%d: $ %s: %s; it ended with %d and printed\n%s", name, b.line+1, c.typed, wrong, code, printed)
			}
		}
	}
	if ran == 0 {
		s.t.Errorf("%s tells nobody to type anything", name)
	}
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		lines = append(lines[:c.from], append(append([]string(nil), c.lines...), lines[c.to:]...)...)
	}
	if len(changes) > 0 {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestReadme runs the commands of README, whose configuration uses /tmp and the state
// directory of root's daemons.
func TestReadme(t *testing.T) {
	s := newSession(t)
	s.apart()
	s.must("mount -t tmpfs tmpfs /var/lib")
	s.follow("../../README.md")
}

// TestTutorial runs the commands of the tutorial.
func TestTutorial(t *testing.T) { newSession(t).follow("../../docs/tutorial.md") }

// TestFirstModel builds the models of first-model.md.
func TestFirstModel(t *testing.T) { newSession(t).follow("../../docs/first-model.md") }

// TestCogModel makes the Cog image of first-model.md, with a program that stands in for cog
// and docker, and a containerd of its own.
func TestCogModel(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "containerd mounts file systems: run the test as root")
	}
	testenv.Command(t, "containerd", "containerd")
	testenv.Command(t, "runc", "runc")
	s := newSession(t)
	s.cog = true
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(s.dir, "tools/cog"), "./cog")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build ./cog: %v: %s", err, out)
	}
	const config = "version = 2\nroot = '/run/containerd/root'\nstate = '/run/containerd/state'\n" +
		"disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']\n"
	if err := os.WriteFile(filepath.Join(s.dir, "containerd.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("mount -t tmpfs tmpfs /run && ln -s cog tools/docker && export PATH=$PWD/bin:$PWD/tools:$PATH")
	s.background(command{typed: "containerd -c containerd.toml", expected: []string{"…", "…containerd successfully booted…"}})
	s.follow("../../docs/first-model.md")
}

// TestHowTo runs the commands of each guide, with the daemon of the tutorial.
func TestHowTo(t *testing.T) {
	guides, err := filepath.Glob("../../docs/how-to/*.md")
	if err != nil || len(guides) == 0 {
		t.Fatal("there are no guides: ", err)
	}
	for _, guide := range guides {
		if filepath.Base(guide) == "README.md" {
			continue
		}
		t.Run(filepath.Base(guide), func(t *testing.T) {
			s := newSession(t)
			s.begin()
			s.follow(guide)
		})
	}
}

// TestOriginalsClients runs the commands of the original's documentation, with its example
// configuration and runner, at its addresses.
func TestOriginalsClients(t *testing.T) {
	s := newSession(t)
	if err := os.CopyFS(filepath.Join(s.dir, "original"), os.DirFS("../e2e/testdata/bin")); err != nil {
		t.Fatal(err)
	}
	s.apart()
	s.must("chmod +x original/* && export PATH=/mnt/original:/mnt/bin:$PATH")
	s.follow("testdata/original.md")
}

// begin follows the tutorial until the daemon runs.
func (s *session) begin() {
	s.t.Helper()
	source, err := os.ReadFile("../../docs/tutorial.md")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, b := range parse(string(source)) {
		language, to, _ := strings.Cut(b.info, " ")
		if language != "console" && to != "" {
			if err := os.WriteFile(filepath.Join(s.dir, to), []byte(b.text), 0o644); err != nil {
				s.t.Fatal(err)
			}
		}
		for _, c := range b.commands {
			if to == "daemon" {
				s.background(c)
				s.run("export SHEPHERD_SERVER=http://localhost:5000")
				return
			}
			s.run(c.typed)
		}
	}
	s.t.Fatal("the tutorial starts no daemon")
}

// TestPatterns: outputs that count as equal.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		expected, got string
		same          bool
	}{
		{"ready at 2026-11-29 20:12:22 after 3.2 s", "ready at 2026-11-30 00:00:00 after 14 s", true},
		{"job-ltpuptynww2yxsbgcx4l3rrkvy", "job-yvheu63nrmdyqniwncm3zbcrnq", true},
		{"a … c", "a b c", true},
		{"a … c", "a b d", false},
		{"a (b) c*", "a (b) c*", true},
		{"a\n…\nz", "a\nb\nc\nz", true},
		{"a\n…\nz", "a\nb", false},
		{"a", "a\nb", false},
		{"a\nb", "a", false},
	} {
		if wrong := differ(strings.Split(c.expected, "\n"), strings.Split(c.got, "\n")); (wrong == "") != c.same {
			t.Errorf("%q and %q: %s", c.expected, c.got, wrong)
		}
	}
	blocks := parse("text\n```console daemon\n$ a \\\n> b\nout\n```\n```yaml dir/file.yml\nkey: 1\n```\n")
	if len(blocks) != 2 || blocks[0].commands[0].typed != "a \\\nb" || blocks[0].commands[0].expected[0] != "out" || blocks[1].text != "key: 1\n" {
		t.Errorf("%+v", blocks)
	}
	if bytes.Count([]byte(normal("a    b")), []byte(" ")) != 2 {
		t.Error("columns are compared")
	}
}
