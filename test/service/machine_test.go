package service

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/iterait/shepherd/internal/testenv"
)

const deadline = 90 * time.Second // a hang guard

// machine is a Debian with shepherd on it.
type machine struct {
	*testing.T
	debian *testenv.Debian
	client *http.Client
}

// boot starts a Debian with the packages and the runner in its /root and /opt.
func boot(t *testing.T, older, newer, scripted string) *machine {
	t.Helper()
	debian := testenv.BootDebian(t, testenv.DebianRoot(t))
	m := &machine{t, debian, debian.Client()}
	for to, from := range map[string]string{"/root/older.deb": older, "/root/newer.deb": newer, "/opt/scripted": scripted} {
		m.copy(from, to)
	}
	return m
}

// copy copies a file of this machine, executable for all.
func (m *machine) copy(from, to string) {
	m.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		m.Fatal(err)
	}
	m.write(to, string(text))
	if err := os.Chmod(filepath.Join(m.debian.Root, to), 0o755); err != nil {
		m.Fatal(err)
	}
}

// step runs a part of the test; the next parts depend on it.
func (m *machine) step(what string, do func(m *machine)) {
	m.Helper()
	if !m.Run(what, func(t *testing.T) { do(&machine{t, m.debian, m.client}) }) {
		m.Fatalf("the service's journal:\n%s", m.journal("-o", "short-precise", "--no-hostname"))
	}
}

func (m *machine) run(args ...string) string {
	m.Helper()
	return m.debian.Run(m, args[0], args[1:]...)
}

func (m *machine) write(path, text string) {
	m.Helper()
	path = filepath.Join(m.debian.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.Fatal(err)
	}
}

func (m *machine) read(path string) []byte {
	m.Helper()
	text, err := os.ReadFile(filepath.Join(m.debian.Root, path))
	if err != nil {
		m.Fatal(err)
	}
	return text
}

// property is one of the service's, as systemctl shows it.
func (m *machine) property(name string) string {
	m.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "-P", name, "shepherdd.service"))
}

// journal is what journalctl shows of the service since the last boot.
func (m *machine) journal(args ...string) string {
	out, _ := m.debian.Try("journalctl", append([]string{"-b", "-u", "shepherdd.service"}, args...)...)
	return out
}

// processes are the command lines that contain one of the words.
func (m *machine) processes(words ...string) (found []string) {
	m.Helper()
	for line := range strings.Lines(m.run("sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done 2>/dev/null`)) {
		for _, word := range words {
			if strings.Contains(line, word) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

func (m *machine) eventually(what string, ok func() bool) {
	m.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.Fatalf("waited in vain until %s", what)
		}
	}
}

// request returns the answer of the daemon.
func (m *machine) request(method, path, body string) (int, string, error) {
	r, err := http.NewRequestWithContext(m.Context(), method, "http://127.0.0.1:5000"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := m.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// job is the body of a request to run a script.
func job(id, sheep, version, script string) string {
	text, _ := json.Marshal(map[string]any{
		"job_id": id, "sheep_id": sheep, "payload": script, "model": map[string]string{"name": "echo", "version": version},
	})
	return string(text)
}

func (m *machine) submit(id, sheep, script string) {
	m.Helper()
	m.submitModel(id, sheep, "v1", script)
}

func (m *machine) submitModel(id, sheep, version, script string) {
	m.Helper()
	if code, text, err := m.request("POST", "/start-job", job(id, sheep, version, script)); code != 200 || err != nil {
		m.Fatalf("start-job %s: %d %s %v", id, code, text, err)
	}
}

// result waits for a job and returns its result: the runner's process and how many jobs
// it has run.
func (m *machine) result(id string) string {
	m.Helper()
	m.eventually("job "+id+" ends", func() bool {
		_, text, err := m.request("GET", "/jobs/"+id+"/status", "")
		return err == nil && (strings.Contains(text, `"done"`) || strings.Contains(text, `"failed"`))
	})
	code, text, err := m.request("GET", "/jobs/"+id+"/result", "")
	if code != 200 || err != nil {
		m.Fatalf("result of %s: %d %s %v", id, code, text, err)
	}
	return text
}

// awaitRunning waits until the sheep has the job.
func (m *machine) awaitRunning(ids ...string) {
	m.Helper()
	for _, id := range ids {
		m.eventually("job "+id+" runs", func() bool {
			_, text, err := m.request("GET", "/jobs/"+id+"/status", "")
			return err == nil && strings.Contains(text, `"processing"`)
		})
	}
}

// pushRunner pushes the scripted runner to the sandbox's registry, once that answers:
// as the image echo:v1, and as echo:user, whose user is not root.
func (m *machine) pushRunner() {
	m.Helper()
	m.eventually("the registry answers", func() bool {
		response, err := m.client.Get("http://127.0.0.1:6000/v2/")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	})
	program, err := os.ReadFile(filepath.Join(m.debian.Root, "/opt/scripted"))
	if err != nil {
		m.Fatal(err)
	}
	for version, user := range map[string]string{"v1": "", "user": "1000:1000"} {
		image := testenv.Image(m, v1.Config{Entrypoint: []string{"/runner", "-p", "9999", "/config.yaml"}, User: user},
			testenv.Layer(m, map[string][]byte{"runner": program, "config.yaml": []byte("print\n")}))
		reference, err := name.ParseReference("127.0.0.1:6000/echo:"+version, name.Insecure)
		if err != nil {
			m.Fatal(err)
		}
		if err := remote.Write(reference, image, remote.WithTransport(m.client.Transport)); err != nil {
			m.Fatal(err)
		}
	}
}

// secrets are the configured secrets and the generated ones.
func (m *machine) secrets() []string {
	m.Helper()
	all := []string{secret, registryPassword}
	if made, err := os.ReadFile(filepath.Join(m.debian.Root, "/var/lib/shepherd/storage/credentials")); err == nil {
		for word := range strings.FieldsSeq(string(made)) {
			if len(word) >= 16 {
				all = append(all, word)
			}
		}
	}
	return all
}

// noSecrets searches what others than root can read for secrets: the journal, command
// lines, answers of the API and of commands, traces, and files.
func (m *machine) noSecrets(traces *testenv.OTLP) {
	m.Helper()
	m.eventually("there are traces to look through", func() bool { return traces.Raw() != "" })
	said := map[string]string{
		"the journal":   m.run("journalctl", "-o", "export"),
		"command lines": m.run("sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; done 2>/dev/null`),
		"the traces":    traces.Raw(),
		"systemctl":     m.run("systemctl", "show", "shepherdd.service"),
		"config check":  m.run("sh", "-c", "shepherdd config check /etc/shepherd/shepherd.yml 2>&1"),
	}
	said["doctor"], _ = m.debian.Try("shepherdd", "doctor")
	said["doctor --json"], _ = m.debian.Try("shepherdd", "doctor", "--json")
	for _, path := range []string{"/status", "/sheep", "/jobs", "/models", "/gpus", "/readyz", "/metrics", "/version", "/spec.json"} {
		_, text, err := m.request("GET", path, "")
		if err != nil {
			m.Errorf("%s: %v", path, err)
		}
		said[path] = text
	}
	administrator := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.debian.Path("/run/shepherd/api.sock"))
	}, DisableKeepAlives: true}}
	for _, path := range []string{"/debug/config", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/models"} {
		response, err := administrator.Get("http://shepherd" + path)
		if err != nil {
			m.Errorf("%s: %v", path, err)
			continue
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			m.Errorf("%s: %s %v", path, response.Status, err)
		}
		said[path] = string(text)
	}
	for _, word := range m.secrets() {
		for where, text := range said {
			if strings.Contains(text, word) {
				m.Errorf("%s: a secret is shown", where)
			}
		}
		m.write("/root/pattern", word+"\n")
		found, _ := m.debian.Try("sh", "-c", "exec 3</root/pattern; exec setpriv --reuid=65534 --regid=65534 --clear-groups grep -rlsF -f /proc/self/fd/3 /etc /var /run /tmp /opt /home /srv /usr/share/shepherd")
		if strings.TrimSpace(found) != "" {
			m.Errorf("another user can read a secret in %s", found)
		}
		m.run("rm", "/root/pattern")
	}
}
