package service

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// worst is the configuration of a daemon that depends on a mount for its data and another
// for its models, on storage, a registry and containerd.
const worst = `data_root: /mnt/scratch/data
state_dir: /var/lib/shepherd
api: {host: 127.0.0.1, port: 5000}
registry: {url: "http://127.0.0.1:6000"}
containerd: {allowed_mounts: [/gates]}
storage: {url: "http://127.0.0.1:7100", access_key: AKIAIOSFODNN7EXAMPLE, secret_key: wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY}
sheep:
  wool:
    type: bare
    working_directory: /srv/models
    command: [/opt/scripted, -p, "{port}", "{config}"]
  dock: {type: docker, mounts: ["/gates:/gates"]}
`

// crash is a loss of power, after which everything has to come up by itself.
func (m *machine) crash() {
	m.Helper()
	m.debian.Crash(m)
}

// logged waits until the service's journal has the text, among the entries that match. What
// has happened is in the journal a moment later.
func (m *machine) logged(text string, match ...string) {
	m.Helper()
	args := append([]string{"-o", "cat"}, match...)
	m.eventually(fmt.Sprintf("the journal says %q", text), func() bool { return strings.Contains(m.journal(args...), text) })
}

// ready is what /readyz answers.
func (m *machine) ready() (code int, text string) {
	code, text, _ = m.request("GET", "/readyz", "")
	return code, text
}

// queued checks that a job has not ended.
func (m *machine) queued(id string) {
	m.Helper()
	if _, text, err := m.request("GET", "/jobs/"+id+"/status", ""); err != nil || !strings.Contains(text, `"queued"`) && !strings.Contains(text, `"processing"`) {
		m.Errorf("job %s: %s %v", id, text, err)
	}
}

// known checks that the daemon knows a job that has ended.
func (m *machine) known(id string) {
	m.Helper()
	if code, text, err := m.request("GET", "/jobs/"+id, ""); code != http.StatusOK || err != nil {
		m.Errorf("job %s: %d %s %v", id, code, text, err)
	}
}

// packageState is what dpkg has noted of the package.
func (m *machine) packageState() string {
	m.Helper()
	return m.run("dpkg-query", "--show", "--showformat=${db:Status-Status}", "shepherd")
}

// TestWorstDays boots a machine on which each of the daemon's dependencies is missing:
// the daemon reports what it waits for and continues by itself once it is there.
func TestWorstDays(t *testing.T) {
	m := boot(t, built.older(t), built.newer(t), built.scripted(t))
	clock := built.withClock(t)
	m.step("install", func(m *machine) {
		m.write("/gates/.keep", "")
		m.write("/srv/models.kept/echo/v1/config.yaml", "print\n")
		m.write("/etc/fstab", "scratch /mnt/scratch tmpfs noauto,mode=755 0 0\n/srv/models.kept /srv/models none bind,noauto 0 0\n")
		m.write("/etc/systemd/system/sandbox.service", "[Service]\nExecStart=/usr/bin/shepherdd sandbox --dir /var/lib/sandbox --registry-port 6000 --storage-port 7100\n[Install]\nWantedBy=multi-user.target\n")
		m.run("mkdir", "-p", "/mnt/scratch", "/srv/models")
		m.run("mount", "/mnt/scratch")
		m.run("mount", "/srv/models")
		m.run("dpkg", "--install", "/root/older.deb")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "start", "sandbox.service")
		m.pushRunner()
		m.write("/etc/shepherd/shepherd.yml", worst)
		m.run("systemctl", "restart", "shepherdd.service")
		m.submit("first-wool", "wool", "print")
		m.submit("first-dock", "dock", "print")
		m.result("first-wool")
		m.result("first-dock")
		// Jobs that run when the power fails.
		m.submit("crash-wool", "wool", "await /gates/crash")
		m.submit("crash-dock", "dock", "await /gates/crash")
		m.awaitRunning("crash-wool", "crash-dock")
		m.run("systemctl", "disable", "containerd.service")
	})
	m.step("a disk that is mounted late", func(m *machine) {
		m.crash()
		const waits = "waiting for a file system: data_root (/mnt/scratch/data) lies on /mnt/scratch, where nothing is mounted"
		m.logged(waits)
		m.eventually("systemctl status says what it waits for", func() bool { return strings.Contains(m.property("StatusText"), waits) })
		if out := m.journal("-p", "err", "-o", "cat"); !strings.Contains(out, waits) {
			m.Errorf("the journal does not have it as an error:\n%s", out)
		}
		m.eventually("it is tried again and again", func() bool { return m.property("NRestarts") > "1" })
		if left := strings.TrimSpace(m.run("ls", "-A", "/mnt/scratch")); left != "" {
			m.Errorf("below the mount point there is %s", left)
		}
		m.run("mount", "/mnt/scratch")
		m.eventually("it comes up by itself", func() bool { return m.property("ActiveState") == "active" })
	})
	m.step("storage that is away at boot", func(m *machine) {
		m.logged("The storage does not answer; jobs wait until it does")
		if code, text := m.ready(); code != http.StatusServiceUnavailable || !strings.Contains(text, "storage") {
			m.Errorf("readyz: %d %s", code, text)
		}
		if code, text, err := m.request("POST", "/start-job", job("too-early", "wool", "v1", "print")); code != http.StatusServiceUnavailable {
			m.Errorf("a submission without storage: %d %s %v", code, text, err)
		}
		m.queued("crash-wool")
		m.write("/gates/crash", "")
		m.run("systemctl", "start", "sandbox.service")
		m.logged("Minio storage appears to be up and running")
	})
	m.step("models that are mounted late", func(m *machine) {
		m.eventually("the sheep says what it waits for", func() bool {
			_, text, _ := m.request("GET", "/sheep", "")
			return strings.Contains(text, "nothing is mounted on /srv/models")
		})
		m.queued("crash-wool")
		m.run("mount", "/srv/models")
		m.result("crash-wool")
	})
	m.step("containerd that starts after us", func(m *machine) {
		m.logged("Sheep of type `docker` cannot work yet")
		m.eventually("the sheep says what it waits for", func() bool {
			_, text, _ := m.request("GET", "/sheep", "")
			return strings.Contains(text, "containerd")
		})
		m.queued("crash-dock")
		m.run("systemctl", "start", "containerd.service")
		m.result("crash-dock")
		if code, text := m.ready(); code != http.StatusOK {
			m.Errorf("readyz: %d %s", code, text)
		}
		m.run("systemctl", "enable", "--quiet", "containerd.service", "sandbox.service")
		m.write("/etc/fstab", "scratch /mnt/scratch tmpfs mode=755 0 0\n/srv/models.kept /srv/models none bind 0 0\n")
	})
	m.step("a clock that is decades off at the start", func(m *machine) {
		m.copy(clock, "/opt/shepherdd")
		for _, unit := range []string{"shepherdd.service", "sandbox.service"} {
			was := strings.TrimSpace(m.run("sh", "-c", "sed -n s/^ExecStart=//p $(systemctl show -P FragmentPath "+unit+")"))
			m.write("/etc/systemd/system/"+unit+".d/clock.conf", "[Service]\nExecStart=\nExecStart="+strings.Replace(was, "/usr/bin/shepherdd", "/opt/shepherdd", 1)+"\n")
		}
		m.submit("clock-wool", "wool", "await /gates/clock")
		m.submit("clock-queued", "wool", "print")
		m.awaitRunning("clock-wool")
		m.write(clockOffset, "-1000000000\n") // 31 years behind, as without a battery
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "restart", "sandbox.service")
		m.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "shepherdd.service")
		m.logged("The clock of this machine is behind the last change in the ledger")
		m.logged("refuses requests because the clocks differ")
		m.eventually("it says that it cannot use the storage", func() bool {
			code, text := m.ready()
			return code == http.StatusServiceUnavailable && strings.Contains(text, "storage")
		})
		m.queued("clock-wool")
		m.queued("clock-queued")
		m.known("first-wool")
		m.write("/gates/clock", "")
		m.write(clockOffset, "0\n") // it is set while the daemon runs
		m.result("clock-wool")
		m.result("clock-queued")
		m.write(clockOffset, "1000000000\n") // and now it is ahead
		m.known("first-wool")
		m.known("clock-wool")
		m.run("rm", "-r", clockOffset, "/etc/systemd/system/shepherdd.service.d", "/etc/systemd/system/sandbox.service.d")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "restart", "sandbox.service", "shepherdd.service")
		m.submit("clock-right", "wool", "print")
		m.result("clock-right")
	})
	m.step("power that fails while an upgrade unpacks", func(m *machine) {
		m.submit("unpack-wool", "wool", "await /gates/unpack")
		m.submit("unpack-dock", "dock", "await /gates/unpack")
		m.awaitRunning("unpack-wool", "unpack-dock")
		m.run("sh", "-c", `dpkg --unpack /root/newer.deb >/dev/null 2>&1 & pid=$!
			while [ ! -e /usr/bin/shepherdd.dpkg-new ] && kill -0 $pid 2>/dev/null; do :; done; kill -9 $pid; wait $pid; true`)
		m.crash()
		m.write("/gates/unpack", "")
		m.result("unpack-wool")
		m.result("unpack-dock")
	})
	m.step("power that fails before an upgrade is configured", func(m *machine) {
		m.submit("configure-wool", "wool", "await /gates/configure")
		m.submit("configure-dock", "dock", "await /gates/configure")
		m.awaitRunning("configure-wool", "configure-dock")
		m.run("dpkg", "--unpack", "/root/newer.deb")
		m.crash()
		m.write("/gates/configure", "")
		m.result("configure-wool")
		m.result("configure-dock")
		if state := m.packageState(); state != "unpacked" {
			m.Errorf("the package is %s", state)
		}
		m.run("dpkg", "--configure", "--pending")
		if state, audit := m.packageState(), m.run("dpkg", "--audit"); state != "installed" || audit != "" {
			m.Errorf("the package is %s; dpkg --audit: %s", state, audit)
		}
		m.eventually("the new version is up", func() bool {
			_, text, _ := m.request("GET", "/version", "")
			return strings.Contains(text, "1.2.0")
		})
		m.submit("configured", "wool", "print")
		m.result("configured")
	})
}
