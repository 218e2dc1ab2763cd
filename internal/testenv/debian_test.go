package testenv

import (
	"io"
	"os"
	"strings"
	"testing"
)

// A Debian boots, runs commands, and leaves no files or processes.
func TestDebian(t *testing.T) {
	var groups []string
	t.Run("boot", func(t *testing.T) {
		d := BootDebian(t, DebianRoot(t))
		groups = d.groups
		if out := d.Run(t, "cat", "/proc/1/comm"); out != "systemd\n" {
			t.Errorf("its first process is %q", out)
		}
		if out := d.Run(t, "ctr", "version"); !strings.Contains(out, "Server:") {
			t.Errorf("containerd says %s", out)
		}
		for name, unit := range map[string]string{
			"hello.socket":   "[Socket]\nListenStream=127.0.0.1:80\nAccept=yes\n",
			"hello@.service": "[Service]\nExecStart=/usr/bin/printf here\nStandardInput=socket\nStandardOutput=socket\n",
		} {
			if err := os.WriteFile(d.Root+"/etc/systemd/system/"+name, []byte(unit), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d.Run(t, "systemctl", "start", "hello.socket")
		conn, err := d.Dial(t.Context(), "tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if said, err := io.ReadAll(conn); string(said) != "here" {
			t.Errorf("its service says %q, %v", said, err)
		}
	})
	if len(groups) == 0 && !t.Failed() {
		t.Skip("no Debian was booted")
	}
	for _, g := range groups {
		if _, err := os.Stat(g); !os.IsNotExist(err) {
			t.Errorf("control group %s is left", g)
		}
	}
}
