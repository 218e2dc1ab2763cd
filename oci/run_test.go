package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

// report is what testdata/inside tells.
type report struct {
	UID, GID   int
	Groups     []int
	Args, Env  []string
	Dir, Host  string
	Status     map[string]string
	Mounts     map[string]string
	Interfaces []string
	Dials      map[string]string
	Files      syscall.Rlimit
	Core       syscall.Rlimit
	Namespaces map[string]string
	Pids       []string
	Tried      map[string]string
	Memory     string
	Devices    []string
}

// kennel runs containers from composed specs with a real containerd and runc.
type kennel struct {
	*testing.T
	daemon *testenv.Containerd
	client *containerd.Client
	image  containerd.Image
	host   Host
	addr   string // a TCP address on the host that answers
}

func newKennel(t *testing.T, daemon *testenv.Containerd) *kennel {
	t.Helper()
	program := filepath.Join(t.TempDir(), "inside")
	if err := testenv.Build(program, "oci/testdata/inside"); err != nil {
		t.Fatal(err)
	}
	inside, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	registry := testenv.StartRegistry(t, testenv.RegistryConfig{})
	registry.Push(t, "inside:v1", testenv.Image(t, v1.Config{}, testenv.Layer(t, map[string][]byte{
		"inside": inside, "tmp/x": nil, "mnt/x": nil,
	})))
	daemon.Ctr(t, "shepherd", "images", "pull", "--plain-http", registry.Host+"/inside:v1")
	client, err := containerd.New(daemon.Address, containerd.WithDefaultNamespace("shepherd"))
	if err != nil {
		t.Fatal(err)
	}
	k := &kennel{T: t, daemon: daemon, client: client, addr: registry.Host}
	cgroups := k.cgroups()
	t.Cleanup(func() {
		for _, c := range []string{"/sys/fs/cgroup/shepherd-test", "/sys/fs/cgroup/*/shepherd-test"} {
			parents, _ := filepath.Glob(c)
			for _, p := range parents {
				defer os.Remove(p)
			}
		}
		left := daemon.Leftovers(t, "shepherd")
		for _, c := range k.cgroups() {
			if !slices.Contains(cgroups, c) {
				left = append(left, "cgroup "+c)
			}
		}
		if len(left) > 0 {
			t.Errorf("left over: %s", strings.Join(left, ", "))
		}
		client.Close()
	})
	if k.image, err = client.GetImage(t.Context(), registry.Host+"/inside:v1"); err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat("/sys/fs/cgroup/cgroup.controllers")
	k.host.Unified = err == nil
	_, err = os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	k.host.SwapLimit = k.host.Unified || err == nil
	return k
}

// cgroups lists those of our containers.
func (k *kennel) cgroups() (found []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/shepherd-test/*", "/sys/fs/cgroup/*/shepherd-test/*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			if info, err := os.Stat(d); err == nil && info.IsDir() {
				found = append(found, d)
			}
		}
	}
	return found
}

// run runs a container to its end and returns what it told.
func (k *kennel) run(change func(*Config)) report {
	k.Helper()
	ctx, cancel := context.WithTimeout(k.Context(), 60*time.Second)
	defer cancel()
	data := k.TempDir()
	for dir := data; dir != "/"; dir = filepath.Dir(dir) { // for who is not root inside
		if info, err := os.Stat(dir); err == nil {
			os.Chmod(dir, info.Mode().Perm()|0o001)
		}
	}
	if err := os.Chmod(data, 0o777); err != nil {
		k.Fatal(err)
	}
	id := fmt.Sprintf("sheep-%d", os.Getpid())
	cfg := Config{
		DataDir: data, Hostname: "sheep", CgroupPath: "/shepherd-test/" + id, Host: k.host,
		Options: Options{
			Command: []string{"/inside"},
			Env:     map[string]string{"REPORT": filepath.Join(data, "report.json"), "DIAL": k.addr + " 127.0.0.1:1"},
		},
	}
	change(&cfg)
	spec, err := Spec(cfg)
	if err != nil {
		k.Fatal(err)
	}
	container, err := k.client.NewContainer(ctx, id, containerd.WithImage(k.image),
		containerd.WithNewSnapshot(id, k.image), containerd.WithSpec(spec))
	if err != nil {
		k.Fatal(err)
	}
	defer func() {
		if err := container.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup); err != nil {
			k.Error(err)
		}
	}()
	output := filepath.Join(k.TempDir(), "log")
	task, err := container.NewTask(ctx, cio.LogFile(output))
	if err != nil {
		k.Fatal(err)
	}
	defer task.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
	exited, err := task.Wait(ctx)
	if err != nil {
		k.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		k.Fatal(err)
	}
	status := <-exited
	if code, _, err := status.Result(); code != 0 || err != nil {
		log, _ := os.ReadFile(output)
		k.Fatalf("exit code %d, %v: %s", code, err, log)
	}
	text, err := os.ReadFile(filepath.Join(data, "report.json"))
	if err != nil {
		k.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		k.Fatal(err)
	}
	return r
}

// TestRun looks at containers from inside, on either daemon.
func TestRun(t *testing.T) {
	claims.Hold(t, "M1")
	for name, start := range map[string]func(testing.TB) *testenv.Containerd{
		"Debian's": testenv.StartContainerd, "2.x": testenv.StartContainerd2,
	} {
		t.Run(name, func(t *testing.T) {
			k := newKennel(t, start(t))
			k.plain()
			k.limited()
			k.hostNetwork()
		})
	}
}

// namespacesHere are this process's own.
func namespacesHere(t testing.TB) map[string]string {
	t.Helper()
	here := map[string]string{}
	for _, name := range []string{"pid", "ipc", "uts", "mnt", "net", "cgroup"} {
		link, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		here[name] = link
	}
	return here
}

func (k *kennel) plain() {
	r := k.run(func(*Config) {})
	if r.UID != 0 || r.GID != 0 || r.Dir != "/" || r.Host != "sheep" || !slices.Equal(r.Pids, []string{"1"}) {
		k.Errorf("plain: %+v", r)
	}
	for what, want := range map[string]string{
		// The ten of the capability set: 0 1 3 4 5 6 7 8 10 18.
		"CapBnd": "00000000000405fb", "CapEff": "00000000000405fb", "CapPrm": "00000000000405fb",
		"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if r.Status[what] != want {
			k.Errorf("plain: %s is %s, want %s", what, r.Status[what], want)
		}
	}
	for name, here := range namespacesHere(k) {
		if own := r.Namespaces[name] != here; own != (name != "cgroup" || k.host.Unified) {
			k.Errorf("plain: %s namespace %s, ours %s", name, r.Namespaces[name], here)
		}
	}
	if !slices.Equal(r.Interfaces, []string{"lo"}) {
		k.Errorf("plain: interfaces %v", r.Interfaces)
	}
	if !strings.Contains(r.Dials[k.addr], "refused") && !strings.Contains(r.Dials[k.addr], "unreachable") {
		k.Errorf("plain: the host's registry answered: %q", r.Dials)
	}
	if !strings.Contains(r.Dials["127.0.0.1:1"], "refused") {
		k.Errorf("plain: loopback is not up: %q", r.Dials)
	}
	if r.Core.Max != 0 {
		k.Errorf("plain: core dumps up to %+v", r.Core)
	}
	for what, allowed := range map[string]bool{
		"write /": true, "write /tmp": true, "write /proc/sys": false, "mknod": false, "mount": false, "unshare": false, "raw socket": false, "kexec": false,
	} {
		if got := r.Tried[what] == ""; got != allowed {
			k.Errorf("plain: %s: %q", what, r.Tried[what])
		}
	}
	// The runtime links core to /proc/kcore, which is masked, where the kernel has that.
	r.Devices = slices.DeleteFunc(r.Devices, func(name string) bool { return name == "core" })
	if want := []string{"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}; !slices.Equal(r.Devices, want) {
		k.Errorf("plain: devices %v", r.Devices)
	}
	if options, ok := r.Mounts["/dev/shm"]; !ok || !strings.Contains(options, "nosuid,nodev,noexec") {
		k.Errorf("plain: mounts %v", r.Mounts)
	}
}

func (k *kennel) limited() {
	host := k.TempDir()
	r := k.run(func(c *Config) {
		c.Account = Account{UID: 1000, GID: 1001, Groups: []uint32{44}}
		c.AllowedMounts = []string{host}
		c.Options.Memory, c.Options.CPUs, c.Options.Pids = 128<<20, 0.5, 50
		c.Options.ReadOnly = true
		c.Options.Tmpfs = []Tmpfs{{Target: "/scratch", Size: 1 << 20}}
		c.Options.Mounts = []Mount{{Source: host, Target: "/host-ro", ReadOnly: true}}
		c.Options.Ulimits = map[string]Ulimit{"nofile": {100, 200}}
	})
	if r.UID != 1000 || r.GID != 1001 || !slices.Equal(r.Groups, []int{44}) && !slices.Equal(r.Groups, []int{44, 1001}) {
		k.Errorf("limited: %d:%d %v", r.UID, r.GID, r.Groups)
	}
	if r.Status["CapEff"] != "0000000000000000" || r.Status["CapPrm"] != "0000000000000000" {
		k.Errorf("limited: a user has capabilities %s", r.Status["CapEff"])
	}
	if r.Memory != "134217728" || r.Files.Max != 200 { // Go raises the other one itself
		k.Errorf("limited: memory %s, files %+v", r.Memory, r.Files)
	}
	for what, allowed := range map[string]bool{"write /": false, "write /scratch": true, "write /host-ro": false, "read /proc/kcore": false, "read /proc/interrupts": false} {
		if got := r.Tried[what] == ""; got != allowed {
			k.Errorf("limited: %s: %q", what, r.Tried[what])
		}
	}
	if !strings.HasPrefix(r.Mounts["/"], "ro,") || !strings.HasPrefix(r.Mounts["/host-ro"], "ro,") {
		k.Errorf("limited: mounts %v", r.Mounts)
	}
}

func (k *kennel) hostNetwork() {
	edited := false
	r := k.run(func(c *Config) {
		c.Options.Network = NetworkHost
		c.Edits = []func(*specs.Spec) error{func(s *specs.Spec) error {
			edited = true
			s.Process.Env = append(s.Process.Env, "EDITED=1")
			return nil
		}}
	})
	if r.Dials[k.addr] != "" || r.Namespaces["net"] != namespacesHere(k)["net"] {
		k.Errorf("host network: %q, %s", r.Dials, r.Namespaces["net"])
	}
	if !edited || !slices.Contains(r.Env, "EDITED=1") {
		k.Errorf("host network: environment %v", r.Env)
	}
	conn, err := net.Dial("tcp", k.addr)
	if err != nil {
		k.Errorf("the registry answers nobody: %v", err)
	} else {
		conn.Close()
	}
}
