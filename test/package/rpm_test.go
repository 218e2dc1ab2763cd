package package_test

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestRPM has rpm read what the package is, contains and runs.
func TestRPM(t *testing.T) {
	examineRPM(t, filepath.Join(dist(t), "shepherd-1.2.0-1.x86_64.rpm"), "x86_64")
}

func examineRPM(t *testing.T, path, arch string) {
	t.Helper()
	rpm := testenv.Command(t, "rpm", "rpm")
	ask := func(args ...string) string {
		t.Helper()
		return run(t, rpm, append(append([]string{"-qp"}, args...), path)...)
	}
	if got := ask("--queryformat", "%{NAME} %{VERSION} %{ARCH} %{OS} %{LICENSE}"); got != "shepherd 1.2.0 "+arch+" linux MIT" {
		t.Errorf("it is %s", got)
	}
	files := ask("--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags} %{FILENAMES}\n]")
	for _, want := range []string{
		"-rwxr-xr-x root root  /usr/bin/shepherdd\n", "-rwxr-xr-x root root  /usr/libexec/shepherd/shepherd-shim\n", "-rw-r----- root root cn /etc/shepherd/shepherd.yml\n",
		"/usr/lib/systemd/system/shepherdd@.service\n", "/usr/share/man/man8/shepherdd.8.gz\n", "/usr/share/shepherd/shepherd.schema.json\n", "/usr/share/zsh/site-functions/_shepherdd\n",
	} {
		if !strings.Contains(files, want) {
			t.Errorf("it lacks %s in\n%s", want, files)
		}
	}
	for line := range strings.Lines(files) {
		if !strings.Contains(line, " root root ") || line[0] != 'l' && (line[5] == 'w' || line[8] == 'w') {
			t.Errorf("others than root may change it: %s", line)
		}
	}
	scripts := ask("--scripts")
	for _, want := range []string{"systemd-sysusers", "sheep stop --all", "daemon-reload"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("its scripts lack %s:\n%s", want, scripts)
		}
	}
}

// TestArm64 packs the programs for arm64 (Grace Hopper, Jetson), examines the packages,
// and runs the programs that they contain.
func TestArm64(t *testing.T) {
	qemu := testenv.Command(t, "qemu-aarch64-static", "qemu-user-static")
	testenv.Command(t, "rpmbuild", "rpm")
	testenv.Command(t, "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
	dir := released(t, "arm64", "deb", "rpm", "COMPRESSION=none")
	deb := filepath.Join(dir, "shepherd_1.2.0_arm64.deb")
	examineRPM(t, filepath.Join(dir, "shepherd-1.2.0-1.aarch64.rpm"), "aarch64")
	for field, want := range map[string]string{"Package": "shepherd", "Version": "1.2.0", "Architecture": "arm64"} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "--field", deb, field)); got != want {
			t.Errorf("%s is %q, expected %q", field, got, want)
		}
	}
	if got := run(t, "dpkg-deb", "--field", deb, "Depends"); !strings.Contains(got, "libc6 (>= 2.") {
		t.Errorf("it depends on %s", got) // shepherd-gpu does
	}
	lintian := exec.Command(testenv.Command(t, "lintian", "lintian"), "--allow-root", "--fail-on", "error,warning",
		"--suppress-tags", "uses-no-compression-for-data-tarball", deb) // this one is packed in haste
	if out, err := lintian.CombinedOutput(); err != nil {
		t.Errorf("lintian says %v:\n%s", err, out)
	}

	root := filepath.Join(t.TempDir(), "root")
	run(t, "dpkg-deb", "--extract", deb, root)
	programs := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		program, err := elf.Open(path)
		if err != nil {
			return nil // it is no program
		}
		defer program.Close()
		programs[filepath.Base(path)] = true
		if program.Machine != elf.EM_AARCH64 {
			t.Errorf("%s is for %s", path, program.Machine)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shepherdd", "shepherd-runner", "shepherd-shim", "shepherd-gpu"} {
		if !programs[name] {
			t.Errorf("the package lacks %s: it has %v", name, programs)
		}
	}
	// The manual pages were made here, by a program of this machine's.
	if text := run(t, "sh", "-c", "gzip -dc "+root+"/usr/share/man/man8/shepherdd.8.gz"); !strings.Contains(text, "config") {
		t.Errorf("the manual page is %.200s", text)
	}

	bin := filepath.Join(root, "usr/bin")
	if got := run(t, qemu, filepath.Join(bin, "shepherdd"), "version"); !strings.Contains(got, "shepherd v1.2.0 ") || !strings.Contains(got, "linux/arm64") {
		t.Errorf("it says it is %s", got)
	}
	config := filepath.Join(t.TempDir(), "shepherd.yml")
	if err := os.WriteFile(config, []byte("data_root: "+root+"/data\nsheep: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, qemu, filepath.Join(bin, "shepherdd"), "config", "check", config); !strings.Contains(got, "data_root: "+root+"/data") {
		t.Errorf("config check says %s", got)
	}
	if out, err := exec.Command(qemu, filepath.Join(bin, "shepherd-runner"), "--help").CombinedOutput(); !strings.Contains(string(out), "shepherd-runner") {
		t.Errorf("shepherd-runner: %v %s", err, out)
	}
}
