package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestMain is also the program that asNobody runs.
func TestMain(m *testing.M) {
	if address := os.Getenv("DOCTOR_TEST_CONTAINERD"); address != "" {
		findings := Containerd{Address: address, Namespace: "shepherd"}.Examine(context.Background())
		if err := json.NewEncoder(os.Stdout).Encode(findings); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestContainerdAway(t *testing.T) {
	dir := t.TempDir()
	missing := Containerd{Address: filepath.Join(dir, "none.sock"), Namespace: "shepherd"}
	expect(t, missing.Examine(t.Context()), Failure, "does not exist", "install and start containerd")

	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	expect(t, Containerd{Address: dead}.Examine(t.Context()), Failure, "nothing listens", "systemctl start containerd")
}

// TestContainerdDenied connects as a user without permission.
func TestContainerdDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "to become another user one has to be root")
	}
	dir := t.TempDir()
	address := filepath.Join(dir, "containerd.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	program := filepath.Join(dir, "doctor.test")
	if out, err := exec.Command("cp", os.Args[0], program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for path, mode := range map[string]os.FileMode{address: 0o600, program: 0o755, dir: 0o755, filepath.Dir(dir): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Env = []string{"DOCTOR_TEST_CONTAINERD=" + address}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var findings []Finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	expect(t, findings, Failure, "this user may not connect", "run shepherdd as root")
}

// TestContainerd examines the version, the snapshotters and the containers with GPUs of a real
// containerd.
func TestContainerd(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	check := Containerd{Address: daemon.Address, Namespace: "shepherd", Snapshotters: []string{"native"}}
	findings := check.Examine(t.Context())
	healthy(t, findings)
	expect(t, findings, OK, " at "+daemon.Address, "")
	expect(t, findings, OK, "snapshotter native", "")

	check.Snapshotters = []string{"stargazer"}
	expect(t, check.Examine(t.Context()), Failure, "no snapshotter stargazer", "native")

	check.Snapshotters = nil
	client, err := containerd.New(daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(t.Context(), "shepherd")
	major, minor := int64(195), int64(0)
	contain := func(id, cgroup string, rules ...specs.LinuxDeviceCgroup) {
		t.Helper()
		_, err := client.NewContainer(ctx, id, containerd.WithSpec(&specs.Spec{
			Version: specs.Version, Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}, Root: &specs.Root{Path: "/"},
			Linux: &specs.Linux{
				CgroupsPath: cgroup,
				Devices:     []specs.LinuxDevice{{Path: "/dev/nvidia0", Type: "c", Major: major, Minor: minor}},
				Resources:   &specs.LinuxResources{Devices: append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, rules...)},
			},
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	allow := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	contain("explicit", "/shepherd-life", allow)
	findings = check.Examine(t.Context())
	healthy(t, findings)
	expect(t, findings, OK, "the GPUs of 1 container outlive", "")

	contain("unruled", "/shepherd-other")
	contain("unit", "system.slice:shepherd:x", allow)
	findings = check.Examine(t.Context())
	expect(t, findings, Failure, "container unruled would lose its GPUs at the next `systemctl daemon-reload`: no device rule allows /dev/nvidia0", "load its model again")
	expect(t, findings, Failure, "container unit would lose its GPUs at the next `systemctl daemon-reload`: its cgroup is a unit", "load its model again")
}

func TestContainerdVersions(t *testing.T) {
	for version, want := range map[string]Level{
		"1.6.20~ds1": OK, "v2.3.7": OK, "1.7.0": OK, "1.5.13": Failure, "0.9.1": Failure, "devel": Warning,
	} {
		if got := judgeVersion(version, "here"); got.Level != want {
			t.Errorf("%s: %+v", version, got)
		}
	}
	if got := fmt.Sprint(judgeVersion("v2.3.7", "here")); got != "{ ok 2.3.7 at here }" {
		t.Errorf("got %s", got)
	}
}
