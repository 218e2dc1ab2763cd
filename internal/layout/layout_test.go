// Package layout has no code: its test checks that imports go in one direction, as
// docs/architecture.md describes.
package layout

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
)

const module = "github.com/iterait/shepherd"

// allowed lists the components that each component may import. A component that is not
// listed may import no other one. The rules do not apply to test files, the folder test and
// the programs of cmd that are not listed.
var allowed = map[string][]string{
	"cmd/shepherdd": {"cli"},
	"cmd/shepherd":  {"cli/remote"},
	"cli": {
		"access", "cli/remote", "client", "config", "daemon", "gpu", "image", "internal", "job", "ledger/archive", "ledger/postgres", "ledger/sqlite", "runtime", "sandbox", "shepherd", "shim", "storage/s3", "webhook",
	},
	"cli/remote": {"client", "config/size", "job"},
	"client":     {"job"},
	"docs":       {},
	"daemon": {
		"access", "api", "config", "docs", "fleet", "gpu", "image", "internal", "job", "ledger", "metrics", "runtime", "shepherd", "storage", "tracing", "webhook",
	},
	"job":                     {},
	"ledger":                  {"job"},
	"storage":                 {"job", "internal/bucketname"},
	"messenger":               {"job"},
	"runtime":                 {"job", "messenger", "internal/logtext"},
	"config":                  {"job", "runtime", "config/size", "gpu", "image/endpoint", "internal/bucketname"},
	"config/size":             {},
	"access":                  {},
	"api":                     {"job", "access", "docs", "internal/heldconn"},
	"fleet":                   {"job"},
	"forecast":                {"job"},
	"shepherd":                {"job", "forecast", "ledger", "storage", "messenger", "runtime", "internal/crashpoint", "internal/durable", "internal/errtext"},
	"webhook":                 {"job", "ledger"},
	"metrics":                 {"job", "ledger", "shepherd"},
	"tracing":                 {"job", "shepherd"},
	"ledger/sqlite":           {"job", "ledger", "ledger/lifecycle", "internal/durable"},
	"ledger/postgres":         {"job", "ledger", "ledger/lifecycle"},
	"ledger/lifecycle":        {"job", "ledger"},
	"ledger/memory":           {"job", "ledger", "ledger/lifecycle"},
	"ledger/archive":          {"job", "ledger"},
	"ledger/ledgertest":       {"job", "ledger"},
	"storage/s3":              {"job", "storage", "internal/bucketname", "internal/durable"},
	"storage/memory":          {"job", "storage"},
	"storage/embedded":        {"job", "storage", "internal/bucketname", "internal/diskspace", "internal/durable", "internal/lifetime"},
	"sandbox":                 {"storage/embedded", "internal/durable", "internal/lifetime"},
	"storage/storagetest":     {"job", "storage", "internal/testenv"},
	"messenger/zmq":           {"messenger"},
	"messenger/messengertest": {"job", "messenger"},
	"runtime/bare":            {"job", "messenger", "runtime", "runtime/shimmed", "shim", "gpu", "internal/libexec", "internal/mounts", "internal/port", "internal/shellwords"},
	"runtime/container":       {"job", "messenger", "runtime", "runtime/runtimetest", "runtime/shimmed", "shim", "image", "oci", "gpu", "config/size", "internal/errtext", "internal/libexec", "internal/shellwords"},
	"runtime/shimmed":         {"job", "messenger", "runtime", "shim", "internal/errtext", "internal/libexec", "internal/logtext", "internal/logspan"},
	"image":                   {"job", "config/size", "image/endpoint"},
	"image/endpoint":          {},
	"oci":                     {"job"},
	"gpu":                     {"job", "config/size", "internal/libexec", "internal/bounded"},
	"gpu/keeper":              {"gpu", "job", "internal/errtext", "internal/proc", "internal/cgroup"},
	"runtime/fake":            {"job", "messenger", "runtime", "gpu"},
	"runtime/runtimetest":     {"job", "messenger", "messenger/zmq", "runtime", "internal/testenv"},
	"shim":                    {"job", "messenger", "internal/bounded", "internal/durable", "internal/logtext", "internal/logspan", "internal/proc", "internal/cgroup"},
	"runner":                  {"job", "messenger", "messenger/zmq"},
	"internal":                {"job"},
	"internal/doctor":         {"image", "gpu", "config/size", "internal/errtext", "internal/mounts"},
	"examples":                {"runner", "internal/testenv", "internal/cogtest"},
	"contrib":                 {"internal/testenv", "messenger"},
	"contrib/fleet":           {"client", "examples", "internal/port", "internal/proc", "job", "ledger/postgres"},
}

// owner returns the component of a package: the longest listed prefix.
func owner(pkg string) string {
	for p := pkg; p != ""; {
		if _, ok := allowed[p]; ok {
			return p
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return ""
}

func TestImportsPointOneWay(t *testing.T) {
	checked := 0
	for pkg, imports := range list(t, "{{.ImportPath}} {{join .Imports \" \"}}", module+"/...") {
		pkg = strings.TrimPrefix(pkg, module+"/")
		component := owner(pkg)
		if strings.HasPrefix(pkg, "test/") || component == "" && strings.HasPrefix(pkg, "cmd/") {
			continue
		}
		if component == "" {
			t.Errorf("%s belongs to no component: add it to the table, or move it", pkg)
			continue
		}
		checked++
		for _, imported := range imports {
			imported, ours := strings.CutPrefix(imported, module+"/")
			if !ours || owner(imported) == component {
				continue
			}
			if !within(imported, allowed[component]) {
				t.Errorf("%s imports %s; %s may import only %v", pkg, imported, component, allowed[component])
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d packages were checked", checked)
	}
}

func within(pkg string, components []string) bool {
	for _, component := range components {
		if pkg == component || strings.HasPrefix(pkg, component+"/") {
			return true
		}
	}
	return false
}

// TestDaemonIsFree checks that the daemon links neither ZeroMQ, which only the shim links, so
// that a hostile runner cannot harm the daemon, nor cgo.
func TestDaemonIsFree(t *testing.T) {
	claims.Hold(t, "M3")
	for pkg := range list(t, "{{.ImportPath}} x", "-deps", module+"/cmd/shepherdd") {
		for _, banned := range []string{"github.com/go-zeromq/zmq4", module + "/messenger/zmq", module + "/runner", "github.com/NVIDIA/go-nvml/pkg/nvml", "testing"} {
			if pkg == banned {
				t.Errorf("cmd/shepherdd links %s", pkg)
			}
		}
	}
}

// TestShimIsSmall checks that the shim, of which every runner has one, stays small.
func TestShimIsSmall(t *testing.T) {
	for pkg := range list(t, "{{.ImportPath}} x", "-deps", module+"/cmd/shepherd-shim") {
		for _, banned := range []string{"net/http", module + "/config", module + "/storage", module + "/ledger"} {
			if pkg == banned {
				t.Errorf("cmd/shepherd-shim links %s", pkg)
			}
		}
	}
}

func list(t *testing.T, format string, args ...string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-f", format}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	found := make(map[string][]string)
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		found[fields[0]] = fields[1:]
	}
	if len(found) == 0 {
		t.Fatal("go list named no package")
	}
	return found
}
