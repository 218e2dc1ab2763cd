// Package service tests shepherdd as the service of a Debian: its package and
// its units under a real systemd, with a containerd of Debian's.
package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

// configuration has a bare and a container sheep whose runners obey scripts, and
// one for short jobs. The storage's secret key is a credential.
const configuration = `data_root: /var/lib/shepherd/data
state_dir: /var/lib/shepherd
api: {host: 127.0.0.1, port: 5000}
registry: {url: "http://127.0.0.1:6000", username: shepherd, password: not-for-the-registry-8b7e}
containerd: {allowed_mounts: [/gates]}
storage:
  access_key: AKIAIOSFODNN7EXAMPLE
  secret_key_file: ${CREDENTIALS_DIRECTORY}/shepherd.storage-secret-key
sheep:
  wool: &bare
    type: bare
    working_directory: /var/lib/shepherd/models
    command: [/opt/scripted, -p, "{port}", "{config}"]
  quick: *bare
  dock: {type: docker, mounts: ["/gates:/gates"]}
`

const secret = "not-for-the-journal-4f1d"

// registryPassword is in the configuration.
const registryPassword = "not-for-the-registry-8b7e"

// hammer submits short jobs, each on a connection of its own, until stop is called, which
// checks that each was accepted and done. A request that is broken off because the daemon
// is killed is repeated; no connection may be refused.
func (m *machine) hammer(prefix string, killed bool) (stop func()) {
	done := make(chan struct{})
	var hammering sync.WaitGroup
	var ids, wrong []string
	hammering.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			id := fmt.Sprintf("%s-%d", prefix, i)
			code, text, err := m.request("POST", "/start-job", job(id, "quick", "v1", "print"))
			if killed && err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				code, text, err = m.request("POST", "/start-job", job(id, "quick", "v1", "print"))
				if code == 409 { // it was taken the first time
					code = 200
				}
			}
			if err != nil || code != 200 {
				wrong = append(wrong, fmt.Sprintf("%s: %d %s %v", id, code, text, err))
			}
			ids = append(ids, id)
		}
	})
	return func() {
		m.Helper()
		close(done)
		hammering.Wait()
		if len(wrong) > 0 {
			m.Errorf("%d of %d requests were refused: %s", len(wrong), len(ids), strings.Join(wrong, "\n"))
		}
		m.result(ids[0])
		m.result(ids[len(ids)-1])
		m.Logf("%d jobs were taken", len(ids))
	}
}

// unnoticed calls do, which replaces the daemon, under load and while jobs run, and checks
// that no request fails and that runners keep their jobs.
func (m *machine) unnoticed(name string, killed bool, do func()) {
	m.Helper()
	gate := "/gates/" + name
	m.submit(name+"-wool-before", "wool", "print")
	m.submit(name+"-dock-before", "dock", "print")
	before := map[string]string{"wool": m.result(name + "-wool-before"), "dock": m.result(name + "-dock-before")}
	for sheep := range before {
		m.submit(name+"-"+sheep, sheep, "await "+gate)
	}
	m.awaitRunning(name+"-wool", name+"-dock")
	pid := m.property("MainPID")
	stop := m.hammer(name+"-short", killed)
	do()
	m.eventually("another daemon is up", func() bool {
		return m.property("MainPID") != pid && m.property("ActiveState") == "active"
	})
	stop()
	m.write(gate, "")
	for sheep, was := range before {
		var runner, now, jobs, after int
		fmt.Sscan(was, &runner, &jobs)
		text := m.result(name + "-" + sheep)
		if fmt.Sscan(text, &now, &after); now != runner || after != jobs+1 {
			m.Errorf("sheep %s: the runner that had done %d jobs was %d; now %d did %d", sheep, jobs, runner, now, after)
		}
	}
}

func TestService(t *testing.T) {
	claims.Hold(t, "L9")
	m := boot(t, built.older(t), built.newer(t), built.scripted(t))
	m.write("/etc/credstore/shepherd.storage-secret-key", secret+"\n")
	m.run("chmod", "600", "/etc/credstore/shepherd.storage-secret-key")
	m.write("/gates/.keep", "")
	m.write("/etc/systemd/system/shepherdd.service.d/traces.conf", "[Service]\nEnvironment=OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318\n")
	collector, err := m.debian.Listen(t.Context(), "tcp", "127.0.0.1:4318")
	if err != nil {
		t.Fatal(err)
	}
	traces := testenv.ServeOTLP(t, collector)

	m.step("install", func(m *machine) {
		m.run("dpkg", "--install", "/root/older.deb")
		if state := m.run("systemctl", "is-active", "shepherdd.service", "shepherdd.socket"); state != "active\nactive\n" {
			m.Errorf("after the installation the units are %q", state)
		}
		if code, text, err := m.request("GET", "/status", ""); code != 200 {
			m.Errorf("status: %d %s %v", code, text, err)
		}
		if warnings := m.run("systemd-analyze", "--man=no", "verify", "shepherdd.service", "shepherdd.socket"); warnings != "" {
			m.Errorf("systemd-analyze verify: %s", warnings)
		}
	})
	m.step("start", func(m *machine) {
		m.run("systemd-run", "--unit=sandbox", "--property=Type=exec", "shepherdd", "sandbox", "--dir", "/var/lib/sandbox", "--registry-port", "6000", "--storage-port", "0")
		m.pushRunner()
		m.write("/var/lib/shepherd/models/echo/v1/config.yaml", "print\n")
		m.write("/etc/shepherd/shepherd.yml", configuration)
		m.run("systemctl", "restart", "shepherdd.service")
		m.eventually("systemctl status says how it is", func() bool {
			return m.property("StatusText") == "0 jobs queued, 0 running; 3 sheep, 0 up, 0 at work"
		})
	})
	m.step("owners", func(m *machine) {
		// systemd changes the owner of all in a StateDirectory= that is another user's.
		m.run("chown", "1000:1000", "/var/lib/shepherd/models/echo/v1/config.yaml")
		m.run("systemctl", "restart", "shepherdd.service")
		if out := m.run("stat", "-c", "%u:%g", "/var/lib/shepherd", "/var/lib/shepherd/models/echo/v1/config.yaml"); out != "0:0\n1000:1000\n" {
			m.Errorf("after a restart the owners are %q", out)
		}
	})
	m.step("job", func(m *machine) {
		m.submit("first-wool", "wool", "print")
		m.submit("first-dock", "dock", "print")
		m.result("first-wool")
		m.result("first-dock")
		// A user other than root can read its inputs and the mounted files.
		m.submitModel("first-user", "dock", "user", "holds /etc/hosts localhost\nprint")
		m.result("first-user")
		m.logged("Job `first-wool` from sheep `wool` done", "SHEPHERD_JOB=first-wool", "SHEPHERD_SHEEP=wool")
		m.noSecrets(traces)
	})
	m.step("kill -9", func(m *machine) {
		m.unnoticed("killed", true, func() { m.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "shepherdd.service") })
	})
	m.step("restart", func(m *machine) {
		m.unnoticed("restarted", false, func() { m.run("systemctl", "restart", "shepherdd.service") })
	})
	m.step("reload", func(m *machine) {
		pid := m.property("MainPID")
		m.submit("reload-wool", "wool", "await /gates/reload")
		m.awaitRunning("reload-wool")
		m.write("/etc/shepherd/shepherd.yml", strings.Replace(configuration, "data_root", "dataroot", 1))
		if out, err := m.debian.Try("systemctl", "reload", "shepherdd.service"); err == nil {
			m.Errorf("a configuration that cannot be read is reloaded: %s", out)
		}
		m.logged(`unknown key; did you mean "data_root"?`)
		m.write("/etc/shepherd/shepherd.yml", configuration+"  late: *bare\n")
		m.run("systemctl", "reload", "shepherdd.service")
		m.submit("reload-late", "late", "print")
		m.result("reload-late")
		m.write("/gates/reload", "")
		m.result("reload-wool")
		if now := m.property("MainPID"); now != pid {
			m.Errorf("the daemon was %s and is %s", pid, now)
		}
		m.noSecrets(traces)
	})
	m.step("a mistake at the start", func(m *machine) {
		// systemd counts the starts of the steps before.
		m.run("systemctl", "reset-failed", "shepherdd.service")
		m.submit("mistake-wool", "wool", "await /gates/mistake")
		m.awaitRunning("mistake-wool")
		m.write("/etc/shepherd/shepherd.yml", strings.Replace(configuration, "data_root", "dataroot", 1))
		if out, err := m.debian.Try("systemctl", "restart", "shepherdd.service"); err == nil {
			m.Errorf("it starts with a configuration that cannot be read: %s", out)
		}
		if restarts, status := m.property("NRestarts"), m.property("ExecMainStatus"); restarts != "0" || status != "78" {
			m.Errorf("it was started %s times more, and exited with %s", restarts, status)
		}
		out, _ := m.debian.Try("systemctl", "status", "shepherdd.service")
		if !strings.Contains(out, `Status: "/etc/shepherd/shepherd.yml:1:1: `) || !strings.Contains(out, `unknown key; did you mean "data_root"?`) {
			m.Errorf("systemctl status does not say what is wrong:\n%s", out)
		}
		m.write("/etc/shepherd/shepherd.yml", configuration+"  late: *bare\n")
		m.run("systemctl", "restart", "shepherdd.service")
		m.write("/gates/mistake", "")
		m.result("mistake-wool")
	})
	m.step("upgrade", func(m *machine) {
		m.unnoticed("upgraded", false, func() { m.run("dpkg", "--install", "/root/newer.deb") })
		if _, text, err := m.request("GET", "/version", ""); !strings.Contains(text, "1.2.0") {
			m.Errorf("the version is %s, %v", text, err)
		}
		m.noSecrets(traces)
	})
	m.step("watchdog", func(m *machine) {
		m.write("/etc/systemd/system/shepherdd.service.d/watchdog.conf", "[Service]\nWatchdogSec=6\nTimeoutAbortSec=1\n")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "restart", "shepherdd.service")
		m.unnoticed("stuck", true, func() { m.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", "shepherdd.service") })
		m.logged("Watchdog timeout")
		m.run("rm", "/etc/systemd/system/shepherdd.service.d/watchdog.conf")
		m.run("systemctl", "daemon-reload")
	})
	m.step("two sockets", func(m *machine) {
		m.write("/etc/systemd/system/shepherdd.socket.d/two.conf", "[Socket]\nListenStream=127.0.0.2:5000\n")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "stop", "shepherdd.socket", "shepherdd.service")
		m.run("systemctl", "start", "shepherdd.socket", "shepherdd.service")
		for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
			response, err := m.client.Get("http://" + host + ":5000/status")
			if err != nil {
				m.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != 200 {
				m.Errorf("%s: %s", host, response.Status)
			}
		}
		m.run("rm", "-r", "/etc/systemd/system/shepherdd.socket.d")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "stop", "shepherdd.socket", "shepherdd.service")
		m.run("systemctl", "start", "shepherdd.socket", "shepherdd.service")
	})
	m.step("the state's disk is full, and is made room on", func(m *machine) {
		m.submit("before-full", "wool", "print")
		m.result("before-full")
		m.run("systemctl", "stop", "shepherdd.socket", "shepherdd.service")
		m.run("mount", "-t", "tmpfs", "-o", "size=64k,mode=750", "full", "/var/lib/shepherd")
		_, _ = m.debian.Try("sh", "-c", "cat /dev/zero >/var/lib/shepherd/filler")
		_, _ = m.debian.Try("systemctl", "start", "--no-block", "shepherdd.service")
		// More often than systemd's usual limit of five.
		m.eventually("it has been tried seven times", func() bool {
			var n int
			_, err := fmt.Sscan(m.property("NRestarts"), &n)
			return err == nil && n >= 7
		})
		m.logged("no space left", "-n", "30")
		m.run("umount", "--lazy", "/var/lib/shepherd")
		m.eventually("it comes up by itself", func() bool { return m.property("ActiveState") == "active" })
		m.run("systemctl", "start", "shepherdd.socket")
		m.result("before-full")
	})
	m.step("two instances", func(m *machine) {
		m.write("/etc/shepherd/second.yml", "data_root: /var/lib/shepherd-second/data\nstate_dir: /var/lib/shepherd-second\napi: {host: 127.0.0.1, port: 5001}\n"+
			"storage: {listen: 127.0.0.1:7001}\nsheep: {}\n")
		m.run("chmod", "640", "/etc/shepherd/second.yml")
		m.run("systemctl", "start", "shepherdd@second.service")
		for _, port := range []string{"5000", "5001"} {
			response, err := m.client.Get("http://127.0.0.1:" + port + "/healthz")
			if err != nil {
				m.Fatal(err)
			}
			response.Body.Close()
		}
		if code, _, err := m.request("GET", "/healthz", ""); code != 200 || err != nil {
			m.Errorf("the first instance: %d, %v", code, err)
		}
		m.run("systemctl", "stop", "shepherdd@second.service")
		m.run("rm", "-r", "/etc/shepherd/second.yml", "/var/lib/shepherd-second")
		m.run("rm", "-rf", "/run/shepherd-second")
	})
	m.step("secrets", func(m *machine) {
		m.noSecrets(traces)
		if out, err := m.debian.Try("shepherdd", "doctor", "--json"); !strings.Contains(out, "no secret is readable") {
			m.Errorf("doctor: %v\n%s", err, out)
		}
	})
	m.step("hardening", func(m *machine) {
		out := m.run("systemd-analyze", "security", "shepherdd.service")
		figure := regexp.MustCompile(`Overall exposure level for shepherdd.service: ([0-9.]+)`).FindStringSubmatch(out)
		docs, err := os.ReadFile("../../docs/service.md")
		if err != nil || figure == nil {
			m.Fatalf("%v; systemd-analyze says\n%s", err, out)
		}
		if !strings.Contains(string(docs), "**"+figure[1]+"**") {
			m.Errorf("docs/service.md does not tell the figure, %s:\n%s", figure[1], out)
		}
		// The template for further instances has the same restrictions.
		closed := func(unit string) string {
			text := string(m.read("/usr/lib/systemd/system/" + unit))
			return text[strings.Index(text, "LimitNOFILE="):strings.Index(text, "[Install]")]
		}
		if closed("shepherdd.service") != closed("shepherdd@.service") {
			m.Error("shepherdd@.service has other limits than shepherdd.service")
		}
	})
	m.step("stop", func(m *machine) {
		m.submit("stopped", "wool", "print")
		m.result("stopped")
		m.run("systemctl", "stop", "shepherdd.socket", "shepherdd.service")
		if len(m.processes("shepherd-shim")) == 0 || len(m.processes("scripted")) == 0 || len(m.processes("/runner")) == 0 {
			m.Error("the sheep are not up after the stop")
		}
		m.run("systemctl", "start", "shepherdd.service")
		m.run("systemctl", "is-active", "shepherdd.socket")
		m.run("shepherdd", "sheep", "stop", "--all")
		if left := m.processes("shepherd-shim", "scripted", "/runner"); len(left) > 0 {
			m.Errorf("left behind: %q", left)
		}
		m.run("shepherdd", "sheep", "start", "--all")
		m.submit("started", "dock", "print")
		m.result("started")
	})
	m.step("purge", func(m *machine) {
		// A lease in the namespace that is not shepherd's.
		m.run("ctr", "-n", "shepherd", "leases", "create", "--id", "somebody-elses")
		// An image in it that is not shepherd's.
		m.run("ctr", "-n", "shepherd", "images", "tag", "127.0.0.1:6000/echo:v1", "example.com/somebody/elses:v1")
		m.run("ctr", "-n", "shepherd", "images", "label", "example.com/somebody/elses:v1", "io.shepherd.image.pulled=")
		// A file system that is mounted below.
		m.run("mkdir", "/srv/weights", "/var/lib/shepherd/models/weights")
		m.run("mount", "--bind", "/srv/weights", "/var/lib/shepherd/models/weights")
		m.run("mount", "-t", "tmpfs", "other", "/var/lib/shepherd/models/echo")
		precious := []string{"/srv/weights/precious", "/var/lib/shepherd/models/echo/precious"}
		m.run(append([]string{"touch"}, precious...)...)
		m.run("dpkg", "--purge", "shepherd")
		m.run(append([]string{"ls"}, precious...)...)
		if left := m.run("ls", "-A", "/var/lib/shepherd"); left != "models\n" {
			m.Errorf("left behind beside what is mounted: %q", left)
		}
		m.run("umount", "/var/lib/shepherd/models/echo", "/var/lib/shepherd/models/weights")
		m.run("rm", "-r", "/var/lib/shepherd")
		if out := m.run("ctr", "-n", "shepherd", "images", "ls", "-q"); out != "example.com/somebody/elses:v1\n" {
			m.Errorf("images in the namespace after the purge: %q", out)
		}
		if out := m.run("ctr", "-n", "shepherd", "leases", "ls", "-q"); strings.TrimSpace(out) != "somebody-elses" {
			m.Errorf("leases in the namespace after the purge: %q", out)
		}
		if left := m.processes("shepherd-shim", "scripted", "/runner", "shepherdd -c"); len(left) > 0 {
			m.Errorf("left behind: %q", left)
		}
		for _, path := range []string{"/var/lib/shepherd", "/run/shepherd", "/etc/shepherd", "/usr/bin/shepherdd"} {
			if _, err := os.Stat(filepath.Join(m.debian.Root, path)); err == nil {
				m.Errorf("left behind: %s: %s", path, m.run("find", path))
			}
		}
		if out, err := m.debian.Try("systemctl", "status", "shepherdd.service", "shepherdd.socket"); err == nil || !strings.Contains(out, "could not be found") {
			m.Errorf("systemd knows of: %s", out)
		}
	})
}
