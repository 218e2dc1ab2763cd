package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
)

// curl sends a request with curl, and returns the status and body of the answer. An error of
// curl itself (no connection, an untrusted certificate) is status 000.
func (w *world) curl(args ...string) (status, body string) {
	w.t.Helper()
	cmd := exec.Command(testenv.Command(w.t, "curl", "curl"), append([]string{"--silent", "--max-time", "60", "--write-out", "\n%{http_code}"}, args...)...)
	cmd.Dir = w.dir
	out, _ := cmd.Output() // curl's exit code is in the status
	text := strings.TrimRight(string(out), "\n")
	at := strings.LastIndexByte(text, '\n')
	return text[at+1:], text[:max(at, 0)]
}

// shepherdd runs the program and returns its standard output and standard error.
func (w *world) shepherdd(args ...string) (out, told string, err error) {
	w.t.Helper()
	cmd := exec.Command(programs+"/shepherdd", args...)
	var o, e strings.Builder
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = w.dir, w.env, &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

// token creates a token and the lines of the configuration for it.
func (w *world) token(args ...string) (token, lines string) {
	w.t.Helper()
	out, told, err := w.shepherdd(append([]string{"token", "new"}, args...)...)
	if err != nil {
		w.t.Fatalf("%v: %s", err, told)
	}
	_, lines, _ = strings.Cut(told, "\n\n")
	return strings.TrimSpace(out), lines
}

// TestTheOpenDaemonSaysSo: it warns once, and only if the network can reach it.
func TestTheOpenDaemonSaysSo(t *testing.T) {
	claims.Hold(t, "C2")
	const warning = "may submit jobs and read all results"
	w := newWorld(t)
	if _, told, err := w.shepherdd("config", "check", w.config); err != nil || strings.Contains(told, warning) {
		t.Errorf("config check, on the loopback address: %v, %s", err, told)
	}
	w.edit("  host: 127.0.0.1\n", "  host: 0.0.0.0\n")
	if _, told, err := w.shepherdd("config", "check", w.config); err != nil || !strings.Contains(told, warning) {
		t.Errorf("config check: %v, %s", err, told)
	}
	w.start()
	w.logged(warning)
	w.api = strings.Replace(w.api, "0.0.0.0", "127.0.0.1", 1)
	if code, _ := w.request("GET", "/status", ""); code != 200 {
		t.Errorf("%d", code)
	}
	w.stop()
	if n := strings.Count(w.log.String(), warning); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestTokensEndToEnd runs a job as a client with a token, and tries to as clients without a
// token or with another one.
func TestTokensEndToEnd(t *testing.T) {
	claims.Hold(t, "C5", "C10", "L2")
	w := newWorld(t)
	farm, lines := w.token("--name", "farm", "--tenant", "wool")
	more, otherLines := w.token("--name", "market", "--tenant", "meat")
	boss, bossLines := w.token("--name", "boss", "--scope", "admin,read")
	w.edit("  port: 0\nsheep", "  port: 0\n  tokens:\n"+lines+otherLines+bossLines+"sheep")
	w.edit("state_dir", "logging: {level: debug}\nstate_dir")
	w.start()
	bearer := func(token string) string { return "Authorization: Bearer " + token }
	start := jobBody("secured", "echo:v1", "hello")

	for name, header := range map[string]string{"no token": "X-Nothing: 1", "a wrong one": bearer(farm + "x"), "its hash": bearer("sha256:" + strings.Repeat("0", 64))} {
		if status, body := w.curl("-H", header, "-d", start, w.api+"/start-job"); status != "401" || !strings.Contains(body, `"message"`) {
			t.Errorf("%s: %s %s", name, status, body)
		}
	}
	if status, body := w.curl("-H", bearer(boss), "-d", start, w.api+"/start-job"); status != "403" || !strings.Contains(body, "scope submit") {
		t.Errorf("without the scope: %s %s", status, body)
	}
	if status, body := w.curl("-H", bearer(farm), "-d", start, w.api+"/start-job"); status != "200" {
		t.Fatalf("submit: %s %s", status, body)
	}
	if status, body := w.curl("-H", bearer(farm), w.api+"/jobs/secured/wait_ready"); status != "200" || !strings.Contains(body, `"done"`) {
		t.Fatalf("wait: %s %s", status, body)
	}
	if status, body := w.curl("-H", bearer(farm), w.api+"/jobs/secured/result"); status != "200" || body != "hello" {
		t.Errorf("result: %s %s", status, body)
	}
	_, none := w.curl("-H", bearer(more), w.api+"/jobs/nothing/status")
	const sameID = "X-Request-Id: one"
	_, noJob := w.curl("-H", bearer(more), "-H", sameID, w.api+"/jobs/nothing")
	if status, body := w.curl("-H", bearer(more), "-H", sameID, w.api+"/jobs/secured"); status != "404" || body != strings.ReplaceAll(noJob, "nothing", "secured") {
		t.Errorf("another tenant looks at it: %s %s", status, body)
	}
	for _, path := range []string{"/status", "/result", "/input", "/wait_ready", "/ready"} {
		status, body := w.curl("-H", bearer(more), w.api+"/jobs/secured"+path)
		if status != "400" || body != strings.ReplaceAll(none, "nothing", "secured") {
			t.Errorf("another tenant asks for %s: %s %s", path, status, body)
		}
	}
	if status, body := w.curl("-H", bearer(boss), w.api+"/jobs/secured/result"); status != "200" || body != "hello" {
		t.Errorf("the administrator: %s %s", status, body)
	}
	for _, path := range []string{"/healthz", "/readyz", "/ui", "/spec.json"} {
		if status, _ := w.curl(w.api + path); status != "200" {
			t.Errorf("%s without a token: %s", path, status)
		}
	}

	// Routes for the machine's administrators are only on the socket, with any token.
	for _, path := range []string{"/debug/pprof/", "/debug/config", "/admin/reload"} {
		if status, _ := w.curl("-X", "POST", "-H", bearer(boss), w.api+path); status != "404" {
			t.Errorf("%s on the network: %s", path, status)
		}
	}
	socket := w.dir + "/state/api.sock"
	if status, body := w.curl("--unix-socket", socket, "http://shepherd/debug/config"); status != "200" || strings.Contains(body, secretKey) {
		t.Errorf("/debug/config on the socket: %s %s", status, body)
	}
	if status, body := w.curl("-X", "POST", "--unix-socket", socket, "http://shepherd/admin/reload"); status != "200" {
		t.Errorf("/admin/reload on the socket: %s %s", status, body)
	}

	// The commands: by the socket without a token, by the network with one.
	if _, told, err := w.shepherdd("models", "ls", "-c", w.config); err != nil {
		t.Errorf("models ls by the socket: %v, %s", err, told)
	}
	if _, told, err := w.shepherdd("models", "ls", "--api", w.api); err == nil || !strings.Contains(told, "Authorization") {
		t.Errorf("models ls without a token: %v, %s", err, told)
	}
	w.env = append(w.env, "SHEPHERD_TOKEN="+boss)
	if _, told, err := w.shepherdd("models", "ls", "--api", w.api); err != nil {
		t.Errorf("models ls with a token: %v, %s", err, told)
	}
	if _, metrics := w.curl("-H", bearer(boss), w.api+"/metrics"); !strings.Contains(metrics, `shepherd_api_requests_refused_total{why="unknown"} 4`) ||
		!strings.Contains(metrics, `shepherd_api_requests_refused_total{why="forbidden"} 1`) {
		t.Error("the refusals are not counted")
	}

	// A removed token is refused without a restart.
	w.edit(otherLines, "")
	if _, told, err := w.shepherdd("reload", "-c", w.config); err != nil {
		t.Errorf("reload: %v, %s", err, told)
	}
	if status, _ := w.curl("-H", bearer(more), w.api+"/status"); status != "401" {
		t.Errorf("a token that was taken away: %s", status)
	}
	if status, _ := w.curl("-H", bearer(farm), w.api+"/status"); status != "200" {
		t.Errorf("one that was not: %s", status)
	}
	w.stop()
	for _, secret := range []string{farm, more, boss, secretKey} {
		if strings.Contains(w.log.String(), secret) {
			t.Error("a secret is in the log")
		}
	}
}

// openssl runs openssl.
func (w *world) openssl(args ...string) {
	w.t.Helper()
	cmd := exec.Command(testenv.Command(w.t, "openssl", "openssl"), args...)
	cmd.Dir = w.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("openssl %s: %v\n%s", args[0], err, out)
	}
}

func (w *world) authority(name string) {
	w.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN="+name,
		"-keyout", name+".key", "-out", name+".crt")
}

// certificate creates NAME.crt and NAME.key, each by a rename.
func (w *world) certificate(authority, name, names string) {
	w.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN="+name, "-keyout", "new.key", "-out", "new.csr")
	write(w.t, w.dir+"/extensions", "subjectAltName="+names+"\n")
	w.openssl("x509", "-req", "-in", "new.csr", "-CA", authority+".crt", "-CAkey", authority+".key", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", "new.crt")
	for _, kind := range []string{"key", "crt"} {
		if err := os.Rename(filepath.Join(w.dir, "new."+kind), filepath.Join(w.dir, name+"."+kind)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestTLSEndToEnd uses certificates made by openssl, and curl.
func TestTLSEndToEnd(t *testing.T) {
	claims.Hold(t, "C7")
	w := newWorld(t)
	for _, name := range []string{"ours", "clients", "strangers"} {
		w.authority(name)
	}
	w.certificate("ours", "api", "DNS:localhost,IP:127.0.0.1")
	w.certificate("clients", "alice", "email:alice@example.com")
	w.certificate("clients", "bob", "email:bob@example.com")
	w.certificate("strangers", "mallory", "email:alice@example.com")
	w.edit("  port: 0\nsheep", fmt.Sprintf(`  port: 0
  tls:
    cert_file: %[1]s/api.crt
    key_file: %[1]s/api.key
    client_ca_file: %[1]s/clients.crt
    clients:
      - {name: alice@example.com, scopes: [submit, read]}
sheep`, w.dir))
	w.launch()
	w.api = w.logged(`Shepherd API is available at (https://\S+)`)
	as := func(who string, args ...string) (string, string) {
		return w.curl(append([]string{"--cacert", "ours.crt", "--cert", who + ".crt", "--key", who + ".key"}, args...)...)
	}
	if status, body := as("alice", "-d", jobBody("by-alice", "echo:v1", "hello"), w.api+"/start-job"); status != "200" {
		t.Fatalf("alice: %s %s", status, body)
	}
	if status, body := as("alice", w.api+"/jobs/by-alice/wait_ready"); status != "200" || !strings.Contains(body, `"done"`) {
		t.Errorf("alice: %s %s", status, body)
	}
	if status, body := as("alice", "-X", "DELETE", w.api+"/models/x"); status != "403" {
		t.Errorf("alice administers: %s %s", status, body)
	}
	if status, body := as("bob", w.api+"/status"); status != "403" || !strings.Contains(body, "not among those") {
		t.Errorf("bob: %s %s", status, body)
	}
	if status, body := as("mallory", w.api+"/status"); status != "000" {
		t.Errorf("mallory: %s %s", status, body)
	}
	if status, body := w.curl("--cacert", "ours.crt", w.api+"/status"); status != "000" {
		t.Errorf("nobody: %s %s", status, body)
	}
	plain := strings.Replace(w.api, "https", "http", 1)
	if status, _ := w.curl(plain + "/status"); status != "400" {
		t.Errorf("without TLS: %s", status)
	}
	if status, body := as("alice", "--cacert", "strangers.crt", w.api+"/status"); status != "000" {
		t.Errorf("alice trusts others: %s %s", status, body)
	}

	// The certificate is renewed by another authority: the daemon shows it, and
	// no connection was refused for it.
	w.authority("next")
	w.certificate("next", "api", "DNS:localhost,IP:127.0.0.1")
	w.eventually("the renewed certificate is shown", func() bool {
		status, _ := as("alice", "--cacert", "next.crt", w.api+"/status")
		if status != "200" {
			if old, _ := as("alice", w.api+"/status"); old != "200" {
				if status, _ = as("alice", "--cacert", "next.crt", w.api+"/status"); status != "200" {
					t.Fatalf("neither certificate is shown: %s, %s", old, status)
				}
			}
		}
		return status == "200"
	})
}
