package service

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// builds are the programs and packages that several tests install, each made once.
type builds struct {
	dir string

	mu   sync.Mutex
	made map[string]string
}

var built builds

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// once returns the path that make has returned for the name; make gets a directory.
func (b *builds) once(t *testing.T, name string, make func(dir string) string) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if path := b.made[name]; path != "" {
		return path
	}
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "shepherd-service-")
		if err != nil {
			t.Fatal(err)
		}
		b.dir, b.made = dir, map[string]string{}
	}
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.made[name] = make(dir)
	return b.made[name]
}

// command runs a command of this machine without cgo; it has to succeed.
func command(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// build builds a program of the repository.
func build(t *testing.T, to, version, source string, flags ...string) {
	t.Helper()
	args := append([]string{"go", "build", "-trimpath", "-ldflags=-s -w -X main.version=" + version}, flags...)
	command(t, append(args, "-o", to, "../../"+source)...)
}

// The two releases that upgrades go between.
const (
	olderVersion = "v1.1.0"
	newerVersion = "v1.2.0"
)

// newer is the Debian package of the working tree.
func (b *builds) newer(t *testing.T) string {
	t.Helper()
	return b.once(t, "newer", func(dir string) string {
		made, err := os.ReadFile(testenv.DebianPackage(t, newerVersion))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "newer.deb")
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	})
}

// older is the package of a version before: its daemon has another version, and its
// shim announces no features, as that of the first release did.
func (b *builds) older(t *testing.T) string {
	t.Helper()
	newer := b.newer(t)
	return b.once(t, "older", func(dir string) string {
		tree, path := dir+"/tree", dir+"/older.deb"
		command(t, "dpkg-deb", "--raw-extract", newer, tree)
		command(t, "sed", "-i", "s/^Version: .*/Version: 1.1.0/", tree+"/DEBIAN/control")
		build(t, tree+"/usr/bin/shepherdd", olderVersion, "cmd/shepherdd")
		features := overlay(t, dir, map[string][]string{
			"shim/protocol.go": {"return []Feature{FeatureSuperseded, FeatureEvents, FeatureCancel, FeatureDeadline}", "return nil"},
		})
		build(t, tree+"/usr/libexec/shepherd/shepherd-shim", olderVersion, "cmd/shepherd-shim", features)
		command(t, "dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path)
		return path
	})
}

// scripted is the runner that obeys scripts.
func (b *builds) scripted(t *testing.T) string {
	t.Helper()
	return b.once(t, "scripted", func(dir string) string {
		build(t, dir+"/scripted", newerVersion, "runtime/container/testdata/runner")
		return dir + "/scripted"
	})
}

// clockOffset is the file that holds by how many seconds the clock of withClock's
// daemon is off.
const clockOffset = "/etc/clock-offset"

// withClock is a shepherdd whose clock is off by what clockOffset holds at the moment,
// as far as records of jobs and the ledger go; the storage of its sandbox sees requests
// as if they came from a machine with that clock. Containers have the clock of their
// host, which a test must not set.
func (b *builds) withClock(t *testing.T) string {
	t.Helper()
	return b.once(t, "clock", func(dir string) string {
		flag := overlay(t, dir, map[string][]string{
			"job/job.go": {
				"\t\"strings\"\n", "\t\"os\"\n\t\"strconv\"\n\t\"strings\"\n",
				"func Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }",
				fmt.Sprintf(`func Now() time.Time { return Wall().UTC().Truncate(time.Microsecond) }

				func Wall() time.Time { return time.Now().Add(Offset()) }

				func Offset() time.Duration {
					text, _ := os.ReadFile(%q)
					seconds, _ := strconv.Atoi(strings.TrimSpace(string(text)))
					return time.Duration(seconds) * time.Second
				}`, clockOffset),
			},
			"ledger/sqlite/ledger.go": {"c.Now = time.Now", "c.Now = job.Wall"},
			"shepherd/shepherd.go":    {"cfg.Now = time.Now", "cfg.Now = job.Wall"},
			"storage/embedded/handler.go": {
				"import (\n", "import (\n\t\"github.com/iterait/shepherd/job\"\n",
				"now: time.Now}", "now: func() time.Time { return time.Now().Add(-job.Offset()) }}",
			},
		})
		build(t, dir+"/shepherdd", newerVersion, "cmd/shepherdd", flag)
		return dir + "/shepherdd"
	})
}

// overlay returns the flag that makes go build replace texts in source files of the
// repository: each is followed by what takes its place.
func overlay(t *testing.T, dir string, changes map[string][]string) (flag string) {
	t.Helper()
	replace := map[string]string{}
	for name, texts := range changes {
		source, err := filepath.Abs("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		changed := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		for pair := range slices.Chunk(texts, 2) {
			text = []byte(replaceOnce(t, string(text), pair[0], pair[1]))
		}
		if err := os.WriteFile(changed, text, 0o644); err != nil {
			t.Fatal(err)
		}
		replace[source] = changed
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/overlay.json", list, 0o644); err != nil {
		t.Fatal(err)
	}
	return "-overlay=" + dir + "/overlay.json"
}

// replaceOnce replaces a text that occurs exactly once.
func replaceOnce(t *testing.T, text, from, to string) string {
	t.Helper()
	if n := strings.Count(text, from); n != 1 {
		t.Fatalf("%q is there %d times: the test has to follow the source", from, n)
	}
	return strings.Replace(text, from, to, 1)
}
