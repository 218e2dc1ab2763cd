// Package package_test builds the release and examines it with the programs that users have:
// dpkg on a fresh Debian, rpm, lintian, man, the shells, sha256sum.
package package_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// version sorts after that of older.
const version = "v1.2.0"

// releases are what make leaves for an architecture, each made once, by the first test
// that needs it.
var releases struct {
	sync.Mutex
	dirs map[string]string
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range releases.dirs {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// released returns the folder with what the targets leave for an architecture.
func released(t *testing.T, arch string, targets ...string) string {
	t.Helper()
	releases.Lock()
	defer releases.Unlock()
	if dir := releases.dirs[arch]; dir != "" {
		return dir
	}
	made := testenv.Pack(t, version, append(targets, "GOARCH="+arch)...)
	dir, err := os.MkdirTemp("", "shepherd-release-")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "-a", made+"/.", dir)
	if releases.dirs == nil {
		releases.dirs = map[string]string{}
	}
	releases.dirs[arch] = dir
	return dir
}

// dist returns the folder of all that is released for this architecture.
func dist(t *testing.T) string {
	t.Helper()
	testenv.Command(t, "rpmbuild", "rpm")
	return released(t, runtime.GOARCH, "dist", "rpm")
}

// deb is the release's Debian package.
func deb(t *testing.T) string { return filepath.Join(dist(t), "shepherd_1.2.0_amd64.deb") }

// run runs a command and returns what it wrote; it has to succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v:\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func TestChecksums(t *testing.T) {
	cmd := exec.Command(testenv.Command(t, "sha256sum", "coreutils"), "--check", "--strict", "SHA256SUMS")
	cmd.Dir = dist(t)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), ": OK") != 3 {
		t.Errorf("sha256sum says %v:\n%s", err, out)
	}
}

func TestLintian(t *testing.T) {
	lintian := testenv.Command(t, "lintian", "lintian")
	out, err := exec.Command(lintian, "--allow-root", "--fail-on", "error,warning", deb(t)).CombinedOutput()
	if err != nil {
		t.Errorf("lintian says %v:\n%s", err, out)
	}
}

// TestManPages checks that the commands have manual pages, and that mandoc and man
// show them without warnings.
func TestManPages(t *testing.T) {
	mandoc := testenv.Command(t, "mandoc", "mandoc")
	man := testenv.Command(t, "man", "man-db")
	pages, err := filepath.Glob(filepath.Join(dist(t), "tree/man/*"))
	if err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]string)
	for _, page := range pages {
		if out, err := exec.Command(mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc says %v: %s", err, out)
		}
		cmd := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80", "PAGER=cat")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		text, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Errorf("man says of %s: %v: %s", filepath.Base(page), err, stderr.String())
		}
		shown[filepath.Base(page)] = strings.Join(strings.Fields(string(text)), " ")
	}
	for page, want := range map[string]string{
		"shepherdd.8":              "-c, --config",
		"shepherdd-config-check.8": "shepherdd config check FILE",
		"shepherd-runner.1":        "SHEPHERD_INPUTS",
		"shepherd.yml.5":           "storage.secret_key (secret",
	} {
		if !strings.Contains(shown[page], want) {
			t.Errorf("%s does not show %q:\n%s", page, want, shown[page])
		}
	}
}

// TestCompletions completes a command line in each shell.
func TestCompletions(t *testing.T) {
	tree := filepath.Join(dist(t), "tree")
	env := append(os.Environ(), "PATH="+filepath.Join(tree, "bin")+":"+os.Getenv("PATH"), "HOME="+t.TempDir(), "TERM=dumb")
	for shell, script := range map[string]string{
		"bash": `
			. /usr/share/bash-completion/bash_completion
			. "$1/completions/bash/$2"
			COMP_WORDS=("$2" config ch) COMP_CWORD=2 COMP_LINE="$2 config ch" COMP_POINT=$((${#2} + 10)) COMP_TYPE=9
			complete -p "$2" | grep -o '__start_[a-z]*' | { read -r f; "$f"; printf '%s\n' "${COMPREPLY[@]}"; }`,
		"zsh": `
			zmodload zsh/zpty
			zpty z zsh -f -i
			zpty -w z "PS1=; fpath=($1/completions/zsh \$fpath); autoload -Uz compinit; compinit -u -D"
			zpty -n -w z "$2 config ch"$'\t'
			zpty -r -m z line "*config check *" && print -r -- "$line"
			zpty -d z`,
		"fish": `
			source $argv[1]/completions/fish/$argv[2].fish
			complete -C "$argv[2] config ch"`,
	} {
		path := testenv.Command(t, shell, shell)
		args := []string{"-c", script}
		if shell != "fish" {
			args = append(args, shell)
		}
		for _, program := range []string{"shepherdd", "shepherd"} {
			cmd := exec.Command(path, append(args, tree, program)...)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "check") {
				t.Errorf("%s completes `%s config ch` to %q, %v", shell, program, out, err)
			}
		}
	}
	if _, err := os.Stat("/usr/share/bash-completion/bash_completion"); err != nil {
		testenv.Missing(t, "bash-completion", "install it with apt-get install bash-completion")
	}
}
