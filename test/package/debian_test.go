package package_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// debian is a fresh Debian, not booted: commands see themselves in its /proc.
type debian struct {
	t    *testing.T
	root string
}

func (d debian) run(args ...string) string {
	d.t.Helper()
	return run(d.t, "unshare", append([]string{"--mount", "--pid", "--fork", "--mount-proc=" + d.root + "/proc", "chroot", d.root, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}, args...)...)
}

// install has dpkg install a package of this machine.
func (d debian) install(path string) {
	d.t.Helper()
	run(d.t, "cp", path, filepath.Join(d.root, "tmp", "shepherd.deb"))
	d.run("dpkg", "--install", "/tmp/shepherd.deb")
}

func (d debian) read(path string) string {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(d.root, path))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

// files are the paths in the root, but what belongs to dpkg and the test.
func (d debian) files() map[string]bool {
	d.t.Helper()
	found := make(map[string]bool)
	out := run(d.t, "find", d.root, "-xdev", "(", "-path", d.root+"/var/lib/dpkg", "-o", "-path", d.root+"/var/log",
		"-o", "-path", d.root+"/tmp", "-o", "-path", d.root+"/var/cache", ")", "-prune", "-o", "-print")
	for line := range strings.Lines(out) {
		found[strings.TrimPrefix(strings.TrimSpace(line), d.root)] = true
	}
	return found
}

// older is the package with an older version number.
func older(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	unpacked := filepath.Join(dir, "unpacked")
	run(t, "dpkg-deb", "--raw-extract", deb(t), unpacked)
	control := filepath.Join(unpacked, "DEBIAN", "control")
	text, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	renumbered := strings.Replace(string(text), "Version: 1.2.0\n", "Version: "+version+"\n", 1)
	if err := os.WriteFile(control, []byte(renumbered), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "shepherd_"+version+"_amd64.deb")
	run(t, "dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", unpacked, path)
	return path
}

// TestDebianPackage installs, upgrades, removes and purges the package.
func TestDebianPackage(t *testing.T) {
	d := debian{t, testenv.DebianRoot(t)}
	before, groups := d.files(), d.read("etc/group")
	const config = "etc/shepherd/shepherd.yml"

	d.install(older(t, "1.1.0"))
	// The default configuration is valid, and only this machine has access.
	if got := d.run("shepherdd", "config", "check", "/"+config); !strings.Contains(got, "host: 127.0.0.1") {
		t.Errorf("the configuration comes to\n%s", got)
	}
	// Owner and mode are what the unit's StateDirectory= wants: systemd would change the
	// owner of everything below at every start otherwise.
	if got := d.run("stat", "-c", "%U:%G %a", "/var/lib/shepherd"); got != "root:root 750\n" {
		t.Errorf("the state directory is %s", got)
	}
	if got := d.run("stat", "-c", "%U:%G %a", "/"+config); got != "root:root 640\n" {
		t.Errorf("the configuration is %s", got)
	}
	if !strings.Contains(d.read("etc/group"), "\nshepherd:") {
		t.Error("there is no group shepherd")
	}
	if link, err := os.Readlink(filepath.Join(d.root, "etc/systemd/system/multi-user.target.wants/shepherdd.service")); err != nil || !strings.HasSuffix(link, "lib/systemd/system/shepherdd.service") {
		t.Errorf("the service is not enabled: %q, %v", link, err)
	}
	if got := d.run("dpkg", "--verify", "shepherd"); got != "" {
		t.Errorf("dpkg misses\n%s", got)
	}

	// An upgrade keeps what the operator wrote, and what is in the state.
	changed := d.read(config) + "\n# changed here\n"
	if err := os.WriteFile(filepath.Join(d.root, config), []byte(changed), 0o640); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(d.root, "var/lib/shepherd/ledger.db")
	if err := os.WriteFile(state, []byte("jobs"), 0o600); err != nil {
		t.Fatal(err)
	}
	// As earlier versions left it.
	d.run("chown", "root:shepherd", "/var/lib/shepherd")
	d.run("chmod", "644", "/"+config)
	d.install(deb(t))
	if got := d.run("dpkg-query", "--show", "shepherd"); got != "shepherd\t1.2.0\n" {
		t.Errorf("after the upgrade there is %q", got)
	}
	if got := d.run("shepherdd", "version"); !strings.Contains(got, version) {
		t.Errorf("the program says it is %q", got)
	}
	if d.read(config) != changed {
		t.Error("the upgrade changed the configuration")
	}
	if got := d.run("stat", "-c", "%U:%G %a", "/var/lib/shepherd", "/"+config); got != "root:root 750\nroot:root 640\n" {
		t.Errorf("after the upgrade state and configuration are %s", got)
	}

	d.run("dpkg", "--remove", "shepherd")
	if _, err := os.Stat(state); err != nil || d.read(config) != changed {
		t.Errorf("the removal took the state or the configuration: %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.root, "usr/bin/shepherdd")); err == nil {
		t.Error("the removal left the program")
	}

	d.run("dpkg", "--purge", "shepherd")
	after := d.files()
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if !before[path] && !strings.HasSuffix(path, "-") { // /etc/group- is the copy before the last change
			t.Errorf("the purge left %s", path)
		}
	}
	for path := range before {
		if !after[path] {
			t.Errorf("the purge took %s", path)
		}
	}
	if got := d.read("etc/group"); got != groups {
		t.Errorf("the groups were\n%s\nand are\n%s", groups, got)
	}
}

// TestContents checks the owners, modes and places of the package's files.
func TestContents(t *testing.T) {
	out, err := exec.Command(testenv.Command(t, "dpkg-deb", "dpkg"), "--contents", deb(t)).Output()
	if err != nil {
		t.Fatal(err)
	}
	places := []string{
		"./etc/shepherd/", "./usr/bin/", "./usr/lib/systemd/system/", "./usr/lib/sysusers.d/", "./usr/lib/tmpfiles.d/",
		"./usr/libexec/shepherd/", "./usr/share/bash-completion/completions/", "./usr/share/doc/shepherd/",
		"./usr/share/fish/vendor_completions.d/", "./usr/share/lintian/overrides/", "./usr/share/man/man", "./usr/share/shepherd/",
		"./usr/share/zsh/vendor-completions/",
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		mode, owner, path := fields[0], fields[1], fields[5]
		if owner != "root/root" || mode[0] != 'l' && (mode[5] == 'w' || mode[8] == 'w') {
			t.Errorf("others than root may change it: %s", line)
		}
		if mode[0] == 'd' {
			continue
		}
		if !slices.ContainsFunc(places, func(place string) bool { return strings.HasPrefix(path, place) }) {
			t.Errorf("%s is where packages put nothing", path)
		}
	}
	for _, want := range []string{"./usr/bin/shepherdd\n", "./usr/bin/shepherd -> shepherdd\n", "./usr/bin/shepherd-runner\n", "./usr/libexec/shepherd/shepherd-shim\n", "/shepherdd.service\n", "/third-party-licences.gz\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the package lacks %s", want)
		}
	}
	conffiles := run(t, "dpkg-deb", "--info", deb(t), "conffiles")
	if conffiles != "/etc/shepherd/shepherd.yml\n" {
		t.Errorf("its configuration files are %q", conffiles)
	}
}

// TestTarball installs the tarball below another prefix.
func TestTarball(t *testing.T) {
	dir := t.TempDir()
	run(t, "tar", "-xzf", filepath.Join(dist(t), "shepherd-1.2.0-linux-amd64.tar.gz"), "-C", dir)
	unpacked, root := filepath.Join(dir, "shepherd-1.2.0-linux-amd64"), filepath.Join(dir, "root")
	install := func() {
		t.Helper()
		cmd := exec.Command(filepath.Join(unpacked, "install"))
		cmd.Env = append(os.Environ(), "DESTDIR="+root, "PREFIX=/opt/shepherd")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("install: %v: %s", err, out)
		}
	}
	install()
	bin := filepath.Join(root, "opt/shepherd/bin")
	if got := run(t, filepath.Join(bin, "shepherd"), "version"); !strings.Contains(got, version) {
		t.Errorf("the program says it is %q", got)
	}
	unit, err := os.ReadFile(filepath.Join(root, "opt/shepherd/lib/systemd/system/shepherdd.service"))
	if err != nil || !strings.Contains(string(unit), "ExecStart=/opt/shepherd/bin/shepherdd ") {
		t.Errorf("the unit does not start what is installed: %v\n%s", err, unit)
	}
	// Programs run on any Linux.
	for _, program := range []string{"bin/shepherdd", "bin/shepherd-runner", "libexec/shepherd/shepherd-shim"} {
		if out, err := exec.Command("ldd", filepath.Join(root, "opt/shepherd", program)).CombinedOutput(); err == nil {
			t.Errorf("%s needs libraries:\n%s", program, out)
		}
	}
	// A second installation leaves the configuration alone, but for who may read it.
	config := filepath.Join(root, "etc/shepherd/shepherd.yml")
	if info, err := os.Stat(config); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the configuration: %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(config, []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(config, 0o644); err != nil {
		t.Fatal(err)
	}
	install()
	if got, err := os.ReadFile(config); string(got) != "mine" {
		t.Errorf("the configuration is %q, %v", got, err)
	}
	if info, err := os.Stat(config); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the configuration after the second installation: %v, %v", info.Mode(), err)
	}
}
