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

// logged waits until the service's journal has the text.
func (m *machine) logged(text string) {
	m.Helper()
	m.eventually(fmt.Sprintf("the journal says %q", text), func() bool { return strings.Contains(m.journal("-o", "cat"), text) })
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

// TestWorstDays boots a machine on which each of the daemon's dependencies is missing:
// the daemon reports what it waits for and continues by itself once it is there.
func TestWorstDays(t *testing.T) {
	m := boot(t, built.older(t), built.newer(t), built.scripted(t))
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
	})
}
