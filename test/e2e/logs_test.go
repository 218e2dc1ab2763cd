package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// A job's progress is logged in the original's words.
func TestLogReadsAsTheOriginals(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.submit("job-done", "echo:v1", "x")
	w.expectDone("job-done", "x")
	w.submit("job-fail", "echo:v2", "fail", "sheep_id", "bare_sheep")
	w.expectFailed("job-fail")
	w.submit("job-exit", "echo:v2", "exit 3")
	w.expectFailed("job-exit")
	// A free sheep may take a job before its submission is logged.
	for _, want := range []string{"En-queueing job `job-done` for sheep `None`", "En-queueing job `job-fail` for sheep `bare_sheep`"} {
		w.eventually("the log says "+want, func() bool { return strings.Contains(w.log.String(), want) })
	}
	at := 0
	for _, want := range []string{
		"Job `job-done` is auto-assigned to sheep `bare_sheep`",
		"Preparing working directory for job `job-done` on `bare_sheep`",
		"Sending InputMessage for job `job-done` on `bare_sheep`",
		"Job `job-done` from sheep `bare_sheep` done",
		"Job `job-fail` requires model `echo:v2` on `bare_sheep`",
		"Slaughtering sheep `bare_sheep`",
		"Starting sheep `bare_sheep` with model `echo:v2`",
		"Sending InputMessage for job `job-fail` on `bare_sheep`",
		"Job `job-fail` from sheep `bare_sheep` failed (ValueError: deliberate failure)",
		"Sheep `bare_sheep` encountered error when processing job `job-exit`: Sheep container died without notice",
	} {
		w.eventually("the log says "+want, func() bool { return strings.Contains(w.log.String()[at:], want) })
		at += strings.Index(w.log.String()[at:], want)
	}
	if strings.Contains(w.log.String(), "auto-assigned to sheep `bare_sheep` job=job-fail") {
		t.Error("a job that asks for a sheep is not assigned by itself")
	}
}

// Log lines whose text names a job or a sheep also have it as a field.
func TestLogFields(t *testing.T) {
	w := newWorld(t)
	w.edit("sheep:\n", "logging: {format: json, level: debug}\nsheep:\n")
	w.start()
	for i, input := range []string{"x", "fail", "exit 3", "x"} {
		id := fmt.Sprint("job-", i)
		w.submit(id, fmt.Sprint("echo:v", i%2+1), input)
		w.await(id)
	}
	w.stop()
	words := regexp.MustCompile("(?i)(job|sheep) `([^`]+)`")
	named := 0
	for line := range strings.Lines(w.log.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%q is no JSON: %v", line, err)
		}
		message := record["msg"].(string)
		for _, m := range words.FindAllStringSubmatch(message, -1) {
			named++
			field := strings.ToLower(m[1])
			if got := record[field]; got != m[2] && m[2] != "None" {
				t.Errorf("field %s is %v in %s", field, got, line)
			}
		}
		if _, ok := record["job"]; ok && record["sheep"] == nil {
			t.Errorf("there is a job but no sheep in %s", line)
		}
	}
	if named < 20 {
		t.Errorf("only %d names are in the log:\n%s", named, w.log)
	}
}

// TestSecretsStaySecret gives the daemon every secret that it can have, makes it use them,
// also wrong ones, and searches for them in all its output: its log at the debug level, all
// answers of the API, metrics, errors, traces, the summary of the configuration, and the
// command lines of its processes.
func TestSecretsStaySecret(t *testing.T) {
	const (
		registryPassword = "hunter2-registry"
		otlpKey          = "sesame-otlp-key"
		otlpPassword     = "otlp-pa55word"
		sheepKey         = "tok3n-of-the-sheep"
		wrongSecret      = "wrong-secret-of-storage"
		fileToken        = "shp_file0123456789abcdefghijklmnopqrstuv"
	)
	receiver := testenv.StartOTLP(t)
	p := newContainerWorld(t)
	w := p.world
	locked := testenv.StartRegistry(t, testenv.RegistryConfig{Username: "ada", Password: registryPassword, Token: true})
	tokenFile := filepath.Join(w.dir, "token")
	write(t, tokenFile, fileToken+"\n")
	if err := os.Chmod(tokenFile, 0o600); err != nil {
		t.Fatal(err)
	}
	w.edit(fmt.Sprintf("{url: %q}", p.registry.URL), fmt.Sprintf("{url: %q, username: ada, password: %s}", locked.URL, registryPassword))
	w.edit("  port: 0\n", fmt.Sprintf("  port: 0\n  debug: true\n  tokens: [{name: all, token_file: %q, scopes: [submit, read, admin]}]\n", tokenFile))
	w.edit("sheep:\n", "logging: {level: debug}\nsheep:\n")
	w.edit("  bare_sheep:\n", fmt.Sprintf("  bare_sheep:\n    env: {API_KEY: %s}\n", sheepKey))
	w.env = append(w.env,
		"OTEL_EXPORTER_OTLP_ENDPOINT="+strings.Replace(receiver.URL, "http://", "http://collector:"+otlpPassword+"@", 1),
		"OTEL_EXPORTER_OTLP_HEADERS=api-key="+otlpKey, "OTEL_BSP_SCHEDULE_DELAY=50")
	w.start()

	var out strings.Builder // all output
	ask := func(method, path, body string) {
		t.Helper()
		code, text := w.request(method, path, body)
		fmt.Fprintf(&out, "%s %s: %d %s\n", method, path, code, text)
	}
	ask("GET", "/sheep", "") // refused without the token
	w.header = map[string]string{"Authorization": "Bearer wrong-" + fileToken}
	ask("GET", "/sheep", "")
	w.header = map[string]string{"Authorization": "Bearer " + fileToken}
	w.submit("job-ok", "echo:v1", "x", "sheep_id", "bare_sheep")
	w.await("job-ok")
	w.submit("job-exit", "echo:v1", "exit 3", "sheep_id", "bare_sheep")
	w.await("job-exit")
	w.submit("job-locked", "no-such:v1", "x", "sheep_id", "dock")
	w.await("job-locked")
	commands := ""
	for _, line := range w.processes() {
		commands += line + "\n"
	}
	if !strings.Contains(commands, "shepherd-shim") {
		t.Fatalf("there are no children to look at: %q", commands)
	}
	out.WriteString(commands)
	for _, path := range []string{
		"/status", "/sheep", "/sheep/bare_sheep/logs", "/sheep/dock/logs", "/models", "/gpus", "/jobs", "/jobs/job-ok", "/jobs/job-exit", "/jobs/job-locked",
		"/jobs/job-ok/status", "/jobs/job-exit/result", "/jobs/job-locked/result", "/metrics", "/readyz", "/healthz", "/version", "/spec.json", "/nothing",
	} {
		ask("GET", path, "")
	}
	ask("POST", "/start-job", `{"job_id": 7`)
	ask("POST", "/models/pull", `{"model": {"name": "no-such", "version": "v1"}}`)
	for _, path := range []string{"/debug/config", "/debug/build", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
		fmt.Fprintf(&out, "%s: %s\n", path, w.socket(path))
	}
	w.eventually("spans are sent", func() bool { return receiver.Span("collect") != nil })
	if receiver.Header("Api-Key") != otlpKey {
		t.Error("the receiver was not shown its key")
	}

	// The receiver is away; the registry has another password; the storage's secret is wrong.
	receiver.Stop()
	locked.SetPassword("another")
	w.submit("job-away", "echo:v1", "x", "sheep_id", "bare_sheep")
	w.await("job-away")
	w.eventually("the log tells of the receiver", func() bool { return strings.Contains(w.log.String(), "Cannot send traces") })
	ask("POST", "/models/pull", `{"model": {"name": "echo", "version": "v1"}}`)
	w.stop()
	minio := testenv.StartMinIO(t)
	w.edit("storage:\n  listen: 127.0.0.1:0\n", fmt.Sprintf("storage:\n  url: %q\n", minio.URL))
	w.edit(secretKey, wrongSecret)
	w.start()
	ask("POST", "/start-job", jobBody("job-wrong", "echo:v1", "x"))
	ask("GET", "/readyz", "")
	ask("GET", "/metrics", "")
	out.WriteString(w.log.All())

	// config check does not show them, neither for a valid configuration nor an invalid one.
	for _, edit := range [][2]string{{"sheep:\n", "sheep:\n"}, {"logging: {", "loging: {"}} {
		w.edit(edit[0], edit[1])
		check := exec.Command(programs+"/shepherdd", "config", "check", w.config)
		check.Env = w.env
		text, _ := check.CombinedOutput() // the second is invalid
		out.Write(text)
	}
	out.WriteString(receiver.Raw())

	all := out.String()
	for _, sign := range []string{"job-locked", "shepherd_build_info", "Cannot send traces", "*****", "refuses access key", "loging"} {
		if !strings.Contains(all, sign) {
			t.Errorf("not everything was looked at: nothing says %q", sign)
		}
	}
	for name, secret := range map[string]string{
		"storage's secret key": secretKey, "the wrong one": wrongSecret, "the registry's password": registryPassword, "the token": fileToken,
		"the receiver's key": otlpKey, "the receiver's password": otlpPassword, "a sheep's": sheepKey,
		"the registry's credentials": base64.StdEncoding.EncodeToString([]byte("ada:" + registryPassword)),
	} {
		for line := range strings.Lines(all) {
			if strings.Contains(line, secret) {
				t.Errorf("%s came out: %.300s", name, line)
			}
		}
	}
}

// socket asks the daemon on the administrators' socket.
func (w *world) socket(path string) string {
	w.t.Helper()
	where, err := os.ReadFile(filepath.Join(w.dir, "state", "api"))
	if err != nil {
		w.t.Fatal(err)
	}
	at := strings.TrimPrefix(string(bytes.TrimSpace(where)), "unix://")
	client := http.Client{Timeout: deadline, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", at)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://shepherd" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
	}
	return text.String()
}
