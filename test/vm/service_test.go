//go:build vm

// Package vm tests shepherdd as the service of the machine that it runs on: `make
// test-vm` boots one with systemd, cgroup v2 and AppArmor, and installs it there.
package vm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/iterait/shepherd/internal/testenv"
)

// hang bounds what takes minutes at most on an emulated processor.
const hang = 5 * time.Minute

const configuration = `data_root: /var/lib/shepherd/data
state_dir: /var/lib/shepherd
api: {host: 127.0.0.1, port: 5000}
registry: {url: "http://127.0.0.1:6000"}
sheep:
  bare:
    type: bare
    working_directory: /var/lib/shepherd/models
    command: [/opt/scripted, -p, "{port}", "{config}"]
  single: {type: docker, memory: 67108864}
  grouped: {type: docker, memory: 67108864, oom_group: true}
`

// service is the packaged shepherdd.
type service struct{ *testing.T }

// run runs a command, which has to succeed, and returns what it printed.
func (s service) run(args ...string) string {
	s.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.Fatalf("%s: %v:\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (s service) write(path, text string) {
	s.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

func (s service) read(path string) string {
	s.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (s service) eventually(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(hang); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("waited in vain until %s", what)
		}
	}
}

// get decodes what the daemon answers, and returns it as it is; nothing while it does
// not answer with 200.
func (s service) get(path string, into any) string {
	response, err := http.Get("http://127.0.0.1:5000" + path)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || json.Unmarshal(text, into) != nil {
		return ""
	}
	return string(text)
}

// job has the sheep run the script and returns the job as the API shows it at its end,
// which has to be in the state.
func (s service) job(id, sheep, state, script string) string {
	s.Helper()
	body, err := json.Marshal(map[string]any{
		"job_id": id, "sheep_id": sheep, "payload": script, "model": map[string]string{"name": "echo", "version": "v1"},
	})
	if err != nil {
		s.Fatal(err)
	}
	response, err := http.Post("http://127.0.0.1:5000/start-job", "application/json", strings.NewReader(string(body)))
	if err != nil {
		s.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		s.Fatalf("start-job %s: %s", id, response.Status)
	}
	var answer struct {
		Ready  bool
		Status string
	}
	s.eventually("job "+id+" ends", func() bool { return s.get("/jobs/"+id+"/ready", &answer) != "" && answer.Ready })
	text := s.get("/jobs/"+id, &answer)
	if answer.Status != state {
		s.Fatalf("job %s should be %s: %s", id, state, text)
	}
	return text
}

// group is the control group of the one process whose command line begins with the
// words, with that process.
func (s service) group(words ...string) (pid int, folder string) {
	s.Helper()
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, path := range commands {
		if text, _ := os.ReadFile(path); strings.HasPrefix(string(text), strings.Join(words, "\x00")+"\x00") {
			found = append(found, filepath.Base(filepath.Dir(path)))
		}
	}
	if len(found) != 1 {
		s.Fatalf("processes %q: %q, want one", words, found)
	}
	pid, _ = strconv.Atoi(found[0])
	return pid, "/sys/fs/cgroup" + strings.TrimPrefix(s.read("/proc/"+found[0]+"/cgroup"), "0::")
}

// kills counts the processes of the group that the kernel killed for memory.
func (s service) kills(folder string) int {
	s.Helper()
	for line := range strings.Lines(s.read(filepath.Join(folder, "memory.events")) + "\n") {
		var n int
		if _, err := fmt.Sscanf(line, "oom_kill %d", &n); err == nil {
			return n
		}
	}
	s.Fatalf("%s counts no kills", folder)
	return 0
}

func (s service) contains(what, text, want string) {
	s.Helper()
	if !strings.Contains(text, want) {
		s.Errorf("%s should say %q: %s", what, want, text)
	}
}

// pushRunner pushes the scripted runner as the image echo:v1.
func (s service) pushRunner() {
	s.Helper()
	s.eventually("the registry answers", func() bool {
		response, err := http.Get("http://127.0.0.1:6000/v2/")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	})
	image := testenv.Image(s, v1.Config{Entrypoint: []string{"/runner", "-p", "9999", "/config.yaml"}},
		testenv.Layer(s, map[string][]byte{"runner": []byte(s.raw("/opt/scripted")), "config.yaml": []byte("print\n")}))
	reference, err := name.ParseReference("127.0.0.1:6000/echo:v1", name.Insecure)
	if err != nil {
		s.Fatal(err)
	}
	if err := remote.Write(reference, image); err != nil {
		s.Fatal(err)
	}
}

func (s service) raw(path string) string {
	s.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

func TestService(t *testing.T) {
	step := func(what string, do func(s service)) {
		t.Helper()
		if !t.Run(what, func(t *testing.T) { do(service{t}) }) {
			out, _ := exec.Command("journalctl", "-b", "-u", "shepherdd.service", "-o", "short-precise", "--no-hostname", "-n", "200").CombinedOutput()
			t.Fatalf("the service's journal:\n%s", out)
		}
	}
	// The runners that the steps look at.
	var single, grouped int
	step("install", func(s service) {
		if err := testenv.Build("/opt/scripted", "runtime/container/testdata/runner"); err != nil {
			s.Fatal(err)
		}
		s.run("dpkg", "--install", os.Getenv("SHEPHERD_TEST_DEB"))
		s.run("systemd-run", "--unit=sandbox", "--property=Type=exec", "shepherdd", "sandbox", "--dir", "/var/lib/sandbox", "--registry-port", "6000", "--storage-port", "0")
		s.pushRunner()
		s.write("/var/lib/shepherd/models/echo/v1/config.yaml", "print\n")
		s.write("/etc/shepherd/shepherd.yml", configuration)
		s.run("systemctl", "restart", "shepherdd.service")
		var answer struct{ Ready bool }
		s.eventually("the daemon is ready", func() bool { return s.get("/readyz", &answer) != "" && answer.Ready })
	})
	step("containers are confined, in scopes of a slice", func(s service) {
		for sheep, group := range map[string]string{"single": "0", "grouped": "1"} {
			s.job("first-"+sheep, sheep, "done", "print")
			pid, folder := s.group("/runner", "-p", "9999")
			if sheep == "single" {
				single = pid
			} else {
				grouped = pid
			}
			for _, file := range []string{"attr/current", "attr/apparmor/current"} {
				if got := s.read(fmt.Sprintf("/proc/%d/%s", pid, file)); got != "shepherd-default (enforce)" {
					s.Errorf("sheep %s: %s is %q", sheep, file, got)
				}
			}
			parent, scope := filepath.Split(folder)
			if parent != "/sys/fs/cgroup/shepherd.slice/" || !strings.HasPrefix(scope, "shepherd-") || !strings.HasSuffix(scope, ".scope") {
				s.Errorf("sheep %s: its group is %s", sheep, folder)
			}
			shown := s.run("systemctl", "show", "--property=ActiveState,Slice,ControlGroup,MemoryMax", scope)
			for _, want := range []string{"ActiveState=active", "Slice=shepherd.slice", "ControlGroup=/shepherd.slice/" + scope, "MemoryMax=67108864"} {
				s.contains("systemctl show "+scope, shown, want)
			}
			if got := s.read(folder + "/memory.oom.group"); got != group {
				s.Errorf("sheep %s: memory.oom.group is %s", sheep, got)
			}
			// One at a time, so that its process is the only one of its kind.
			s.run("shepherdd", "sheep", "stop", "--all")
			s.run("shepherdd", "sheep", "start", "--all")
		}
		if single == grouped {
			s.Error("two sheep have one runner")
		}
		if left := s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "shepherd-*.scope"); left != "" {
			s.Errorf("scopes of stopped sheep: %s", left)
		}
	})
	step("a container's child is killed for memory", func(s service) {
		s.contains("the job", s.job("child", "single", "done", "starve 256"), "the kernel killed a process that the runner had started, for lack of memory")
		if _, folder := s.group("/runner", "-p", "9999"); s.kills(folder) == 0 {
			s.Error("the kernel has counted no kill")
		}
	})
	step("a container is killed for memory", func(s service) {
		s.contains("the job", s.job("runner", "single", "failed", "allocate 256"), "out of memory")
	})
	step("a container is killed for its child's memory", func(s service) {
		s.contains("the job", s.job("together", "grouped", "failed", "starve 256"), "out of memory")
	})
	step("systemd keeps no scope of the containers", func(s service) {
		s.run("shepherdd", "sheep", "stop", "--all")
		if left := s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "shepherd-*.scope"); left != "" {
			s.Errorf("scopes that stay: %s", left)
		}
		s.run("shepherdd", "sheep", "start", "--all")
	})
	step("a bare runner of the service's own group is killed for memory", func(s service) {
		s.run("systemctl", "set-property", "--runtime", "shepherdd.service", "MemoryMax=600M", "MemorySwapMax=0")
		s.contains("the job", s.job("bare-shared", "bare", "failed", "allocate 1500"), "out of memory")
		s.run("systemctl", "set-property", "--runtime", "shepherdd.service", "MemoryMax=infinity")
		if got := s.run("systemctl", "is-active", "shepherdd.service"); got != "active" {
			s.Errorf("the service is %s", got)
		}
	})
	step("with a separate control group", func(s service) {
		s.run("shepherdd", "sheep", "stop", "--all")
		s.write("/etc/systemd/system/shepherdd.service.d/subgroup.conf", "[Service]\nDelegateSubgroup=daemon\n")
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", "shepherdd.service")
		s.run("shepherdd", "sheep", "start", "--all")
		daemon := s.run("systemctl", "show", "-P", "MainPID", "shepherdd.service")
		if got := s.read("/proc/" + daemon + "/cgroup"); got != "0::/system.slice/shepherdd.service/daemon" {
			s.Errorf("the daemon's group is %s", got)
		}
		s.job("bare-own", "bare", "done", "print")
		_, folder := s.group("/opt/scripted")
		if parent, life := filepath.Split(folder); parent != "/sys/fs/cgroup/system.slice/shepherdd.service/" || !strings.HasPrefix(life, "shepherd-") {
			s.Fatalf("the runner's group is %s", folder)
		}
		s.write(folder+"/memory.max", "134217728")
		s.contains("the job", s.job("bare-child", "bare", "done", "starve 512"), "the kernel killed a process that the runner had started, for lack of memory")
		if s.kills(folder) == 0 {
			s.Error("the kernel has counted no kill")
		}
		s.contains("the job", s.job("bare-runner", "bare", "failed", "allocate 512"), "out of memory")
	})
	step("a restart adopts running sheep", func(s service) {
		runners := map[string][]string{"single": {"/runner", "-p", "9999"}, "bare": {"/opt/scripted"}}
		before := map[string]int{}
		for sheep, words := range runners {
			s.job("before-"+sheep, sheep, "done", "print")
			before[sheep], _ = s.group(words...)
		}
		s.run("systemctl", "restart", "shepherdd.service")
		for sheep, words := range runners {
			s.job("after-"+sheep, sheep, "done", "print")
			if now, _ := s.group(words...); now != before[sheep] {
				s.Errorf("sheep %s: the runner was %d and is %d", sheep, before[sheep], now)
			}
		}
	})
	step("nothing is left", func(s service) {
		s.run("shepherdd", "sheep", "stop", "--all")
		if left := s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "shepherd-*.scope"); left != "" {
			s.Errorf("scopes that stay: %s", left)
		}
		if failed := s.run("systemctl", "list-units", "--failed", "--plain", "--no-legend"); failed != "" {
			s.Errorf("units that failed: %s", failed)
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/system.slice/shepherdd.service/shepherd-*")
		if len(groups) > 0 {
			s.Errorf("groups that stay: %q", groups)
		}
	})
}
