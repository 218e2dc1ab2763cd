package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/doctor"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// patient is a machine for the doctor to examine.
type patient struct {
	t           *testing.T
	dir, config string
}

func newPatient(t *testing.T, more string) patient {
	t.Helper()
	dir := t.TempDir()
	p := patient{t: t, dir: dir, config: filepath.Join(dir, "shepherd.yml")}
	// Programs that a build leaves beside the daemon, which this test is not.
	bin := filepath.Join(dir, "bin")
	for _, name := range []string{"shepherd-shim", "shepherd-runner"} {
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	text := fmt.Sprintf("data_root: %s/data\nstate_dir: %s/state\napi: {host: 127.0.0.1, port: %d}\n%s", dir, dir, testenv.FreePort(t), more)
	if !strings.Contains(more, "sheep:") {
		text += fmt.Sprintf("sheep: {sheep_1: {type: bare, working_directory: %s}}\n", dir)
	}
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// examine runs the command and returns its diagnosis.
func (p patient) examine(flags ...string) (doctor.Diagnosis, error) {
	p.t.Helper()
	var out bytes.Buffer
	root := newRoot("shepherdd", Build{})
	root.SetOut(&out)
	root.SetArgs(append([]string{"doctor", "-c", p.config, "--json"}, flags...))
	err := root.Execute()
	var d doctor.Diagnosis
	if unread := json.Unmarshal(out.Bytes(), &d); unread != nil {
		p.t.Fatalf("%v: %s", unread, out.String())
	}
	if d.Healthy != (err == nil) && len(flags) == 0 {
		p.t.Errorf("healthy is %v and the error %v", d.Healthy, err)
	}
	return d, err
}

// expect examines, and wants a finding of the check that holds the words.
func (p patient) expect(check string, level doctor.Level, words, next string) {
	p.t.Helper()
	d, _ := p.examine()
	for _, f := range d.Findings {
		if f.Check == check && f.Level == level && strings.Contains(f.Message, words) && strings.Contains(f.Next, next) {
			return
		}
	}
	p.t.Errorf("no %s of %s says %q and advises %q: %+v", level, check, words, next, d.Findings)
}

func TestDoctorWell(t *testing.T) {
	p := newPatient(t, fmt.Sprintf("storage: {listen: 127.0.0.1:%d}\n", testenv.FreePort(t)))
	d, err := p.examine()
	if err != nil {
		t.Errorf("%v: %+v", err, d.Findings)
	}
	// It changes nothing.
	for _, dir := range []string{"data", "state"} {
		if _, err := os.Stat(filepath.Join(p.dir, dir)); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", dir, err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	warned := newPatient(t, fmt.Sprintf("storage: {listen: %q}\n", taken.Addr()))
	if _, err := warned.examine(); err != nil {
		t.Errorf("a warning is no failure: %v", err)
	}
	if d, err := warned.examine("--strict"); err == nil || d.Warnings == 0 {
		t.Errorf("with --strict it is: %v, %+v", err, d)
	}
}

func TestDoctorConfig(t *testing.T) {
	p := newPatient(t, "unheard_of: 1\nnode: \" \"\n")
	p.expect("config", doctor.Failure, "unheard_of: unknown key", "configuration.md")
	p.expect("config", doctor.Failure, "node", "configuration.md")
	if err := os.Remove(p.config); err != nil {
		t.Fatal(err)
	}
	p.expect("config", doctor.Failure, p.config, "name the file")
}

// TestDoctorStorage gives a real storage the right keys, wrong ones, and ends it.
func TestDoctorStorage(t *testing.T) {
	server := testenv.StartMinIO(t)
	with := func(access, secret string) patient {
		return newPatient(t, fmt.Sprintf("storage: {url: %q, access_key: %q, secret_key: %q}\n", server.URL, access, secret))
	}
	right := with(server.AccessKey, server.SecretKey)
	right.expect("storage", doctor.OK, server.URL, "")
	with(server.AccessKey, "not-the-secret").expect("storage", doctor.Failure, "the secret is wrong", "storage.secret_key")
	with("nobody", server.SecretKey).expect("storage", doctor.Failure, "does not know the key", "storage.access_key")
	file := filepath.Join(t.TempDir(), "key")
	hidden := newPatient(t, fmt.Sprintf("storage: {url: %q, access_key: %q, secret_key_file: %q}\n", server.URL, server.AccessKey, file))
	hidden.expect("storage", doctor.Failure, "storage.secret_key_file: open "+file, "put the key there")
	if err := os.WriteFile(file, []byte(server.SecretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hidden.expect("storage", doctor.OK, server.URL, "")
	server.Stop()
	right.expect("storage", doctor.Failure, "not reachable", "storage.url")
}

// TestDoctorLedger damages a ledger that has jobs in it.
func TestDoctorLedger(t *testing.T) {
	p := newPatient(t, fmt.Sprintf("storage: {listen: 127.0.0.1:%d}\n", testenv.FreePort(t)))
	p.expect("ledger", doctor.OK, "will be created when", "")
	path := filepath.Join(p.dir, "state", "ledger.db")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := l.Create(t.Context(), job.Record{ID: job.ID(fmt.Sprintf("job-%d-%s", i, strings.Repeat("x", 150))), Model: job.Model{Name: "m"}}); err != nil {
			t.Fatal(err)
		}
	}
	p.expect("ledger", doctor.OK, "100 jobs", "") // while it is open
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(content) / 2; i < len(content); i++ {
		content[i] ^= 0x5a
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	p.expect("ledger", doctor.Failure, "damaged", "restore a backup")
}

func TestDoctorRegistry(t *testing.T) {
	registry := testenv.StartRegistry(t, testenv.RegistryConfig{Username: "ada", Password: "right"})
	with := func(password string) patient {
		return newPatient(t, fmt.Sprintf("registry: {url: %q, username: ada, password: %q}\nstorage: {listen: 127.0.0.1:%d}\n", registry.URL, password, testenv.FreePort(t)))
	}
	with("right").expect("registry", doctor.OK, registry.URL, "")
	with("wrong").expect("registry", doctor.Failure, "refused user", "check registry.username")
}

// TestDoctorContainers examines what container sheep need.
func TestDoctorContainers(t *testing.T) {
	dir := t.TempDir()
	p := newPatient(t, fmt.Sprintf("containerd: {address: %s/containerd.sock}\nstorage: {listen: 127.0.0.1:%d}\nregistry: {url: http://127.0.0.1:1}\n"+
		"sheep: {box: {type: docker}, other: {type: container, runtime: %s/nothing}}\n", dir, testenv.FreePort(t), dir))
	p.expect("containerd", doctor.Failure, "does not exist", "containerd.address")
	p.expect("programs", doctor.Failure, dir+"/nothing", "another runtime")
	t.Setenv("PATH", dir)
	p.expect("programs", doctor.Failure, "runc is not on PATH", "apt-get install runc")
}

// Findings come in every form, and each is the same in all.
func TestDoctorForms(t *testing.T) {
	p := newPatient(t, "")
	d, _ := p.examine()
	said, _ := call("doctor", "-c", p.config, "-o", "jsonl")
	var checks []string
	for line := range strings.Lines(said) {
		var f doctor.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		checks = append(checks, f.Check)
	}
	var want, named []string
	for _, f := range d.Findings {
		want = append(want, f.Check)
		if f.Level != doctor.OK && !slices.Contains(named, f.Check) {
			named = append(named, f.Check)
		}
	}
	if !slices.Equal(checks, want) {
		t.Errorf("an object a line: %q, want %q", checks, want)
	}
	if said, _ := call("doctor", "-c", p.config, "-o", "name"); !slices.Equal(strings.Fields(said), named) {
		t.Errorf("names: %q, want %q", said, named)
	}
}

// Receivers of webhooks are connected to, and what keeps messages from them is a warning;
// a secret that cannot be read is a failure.
func TestDoctorWebhooks(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("whsec_"+strings.Repeat("QUJD", 11)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("webhooks: {%%s receivers: [{name: farm, url: \"http://%s/hook\", secret_file: %s}]}\n", l.Addr(), secret)
	of := func(p patient) (levels []doctor.Level, said string) {
		d, _ := p.examine()
		for _, f := range d.Findings {
			if f.Check == "webhooks" {
				levels, said = append(levels, f.Level), said+f.Message+"; "+f.Next+"\n"
			}
		}
		return levels, said
	}
	allowed := newPatient(t, fmt.Sprintf(text, "allow: [127.0.0.1/32],"))
	if levels, said := of(allowed); !slices.Equal(levels, []doctor.Level{doctor.OK, doctor.OK}) {
		t.Errorf("a receiver that is well: %v\n%s", levels, said)
	}
	if levels, said := of(newPatient(t, fmt.Sprintf(text, ""))); !slices.Equal(levels, []doctor.Level{doctor.OK, doctor.Warning}) || !strings.Contains(said, "webhooks.allow") {
		t.Errorf("an address that is refused: %v\n%s", levels, said)
	}
	l.Close()
	if err := os.WriteFile(secret, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if levels, said := of(allowed); !slices.Equal(levels, []doctor.Level{doctor.Failure, doctor.Warning}) || strings.Contains(said, "short") {
		t.Errorf("a receiver that is gone, and no secret: %v\n%s", levels, said)
	}
}
