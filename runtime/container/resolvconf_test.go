package container

import (
	"os"
	"path/filepath"
	"testing"

	cnitypes "github.com/containernetworking/cni/pkg/types"
)

func TestWriteResolvConf(t *testing.T) {
	const stub = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"
	const uplink = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch lan\n"
	for _, c := range []struct{ name, first, second, want string }{
		{"an ordinary file", uplink, "nameserver 198.51.100.1\n", uplink},
		{"systemd-resolved's stub", stub, uplink, uplink},
		{"a resolver of the machine's own beside another", "nameserver ::1\nnameserver 192.0.2.1\nnameserver ::ffff:127.0.0.1\n", uplink, "nameserver 192.0.2.1\n"},
		{"only a resolver of the machine's own", stub, "", "# by systemd-resolved\noptions edns0 trust-ad\nsearch lan\n"},
		{"broken", "nameserver\nnameserver nonsense\nnameserver 192.0.2.1", uplink, "nameserver\nnameserver 192.0.2.1"},
		{"none", "", uplink, uplink},
		{"nothing at all", "", "", ""},
	} {
		dir := t.TempDir()
		sources := []string{filepath.Join(dir, "first"), filepath.Join(dir, "second")}
		for i, text := range []string{c.first, c.second} {
			if text != "" {
				if err := os.WriteFile(sources[i], []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		path := filepath.Join(dir, "resolv.conf")
		if err := writeResolvConf(path, sources...); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestFormatResolvConf(t *testing.T) {
	got := string(formatResolvConf(cnitypes.DNS{
		Nameservers: []string{"10.1.0.1", "10.1.0.2"}, Domain: "farm", Search: []string{"lan"}, Options: []string{"ndots:2"},
	}))
	if want := "nameserver 10.1.0.1\nnameserver 10.1.0.2\nsearch farm lan\noptions ndots:2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
