package package_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

// TestRPM has rpm read what the package is, brings and does.
func TestRPM(t *testing.T) {
	rpm := testenv.Command(t, "rpm", "rpm")
	testenv.Command(t, "rpmbuild", "rpm")
	made, err := filepath.Glob(filepath.Join(testenv.Pack(t, version, "rpm"), "shepherd-1.2.0-1.x86_64.rpm"))
	if err != nil || len(made) != 1 {
		t.Fatalf("make rpm left %v, %v", made, err)
	}
	ask := func(args ...string) string {
		t.Helper()
		return run(t, rpm, append(append([]string{"-qp"}, args...), made[0])...)
	}
	if got := ask("--queryformat", "%{NAME} %{VERSION} %{ARCH} %{LICENSE}"); got != "shepherd 1.2.0 x86_64 MIT" {
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

// TestArm64 builds the programs for arm64 (Grace Hopper, Jetson) and runs them.
func TestArm64(t *testing.T) {
	qemu := testenv.Command(t, "qemu-aarch64-static", "qemu-user-static")
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v1.2.0", "-o", dir+"/", "./cmd/shepherdd", "./cmd/shepherd-shim", "./cmd/shepherd-runner")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := run(t, qemu, filepath.Join(dir, "shepherdd"), "version"); !strings.Contains(got, "shepherd v1.2.0 ") || !strings.Contains(got, "linux/arm64") {
		t.Errorf("it says it is %s", got)
	}
	config := filepath.Join(dir, "shepherd.yml")
	if err := os.WriteFile(config, []byte("data_root: "+dir+"/data\nsheep: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, qemu, filepath.Join(dir, "shepherdd"), "config", "check", config); !strings.Contains(got, "data_root: "+dir+"/data") {
		t.Errorf("config check says %s", got)
	}
	if out, err := exec.Command(qemu, filepath.Join(dir, "shepherd-runner"), "--help").CombinedOutput(); !strings.Contains(string(out), "shepherd-runner") {
		t.Errorf("shepherd-runner: %v %s", err, out)
	}
}
