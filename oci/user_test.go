package oci

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/iterait/shepherd/internal/claims"
)

func accounts() fstest.MapFS {
	return fstest.MapFS{
		"etc/passwd": {Data: []byte("root:x:0:0:root:/root:/bin/sh\n#x:x:9:9::/:\nada:x:1000:1001::/home/ada:/bin/sh\nbad:x:-1:0::/:\nbob:x:1002:1002::relative:/bin/sh\nshort:x\nada:x:5:5::/:\n")},
		"etc/group":  {Data: []byte("root:x:0:\nvideo:x:44:bob,ada\nrender:x:109:ada\nada:x:1001:ada\nvideo2:x:44:ada\nbroken:x:y:ada\n")},
	}
}

func TestResolveUser(t *testing.T) {
	ada := Account{UID: 1000, GID: 1001, Groups: []uint32{44, 109}, Home: "/home/ada"}
	for name, want := range map[string]Account{
		"":              {Home: "/root"},
		"root":          {Home: "/root"},
		"0":             {Home: "/root"},
		"ada":           ada,
		"1000":          ada,
		"ada:video":     {UID: 1000, GID: 44, Home: "/home/ada"},
		"ada:7":         {UID: 1000, GID: 7, Home: "/home/ada"},
		"bob":           {UID: 1002, GID: 1002, Groups: []uint32{44}},
		"4711":          {UID: 4711},
		"4711:render":   {UID: 4711, GID: 109},
		"1000:":         ada,
		"ada:":          ada,
		"4711:":         {UID: 4711},
		":video":        {GID: 44, Home: "/root"},
		":":             {Home: "/root"},
		"2147483647:12": {UID: 2147483647, GID: 12},
	} {
		if got, err := ResolveUser(accounts(), name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v, %v; want %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"eve":        `"eve" is not in the image's /etc/passwd`,
		"bad":        "is not in the image's /etc/passwd",
		"short":      "is not in the image's /etc/passwd",
		"-1":         "is not in the image's /etc/passwd",
		"2147483648": "is not in the image's /etc/passwd",
		"ada:staff":  `group "staff" is not in`,
		"a:b:c":      "is not USER or USER:GROUP",
		"a b":        "is not USER or USER:GROUP",
		"\x00":       "is not USER or USER:GROUP",
		"../etc":     "is not USER or USER:GROUP",
	} {
		if got, err := ResolveUser(accounts(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %+v, %v; want %q", name, got, err, want)
		}
	}
	// An image without these files, as one that holds a static program alone.
	if got, err := ResolveUser(fstest.MapFS{}, "1000:1000"); err != nil || got.UID != 1000 || got.GID != 1000 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestResolveUserStaysInTheImage plants a link to the host's accounts.
func TestResolveUserStaysInTheImage(t *testing.T) {
	claims.Hold(t, "M2")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "etc", "passwd")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if a, err := ResolveUser(root.FS(), "daemon"); err == nil {
		t.Errorf("the host's account %+v was found", a)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("ada:video", "ada:x:1000:1001::/home/ada:/bin/sh\n", "video:x:44:ada\n")
	f.Add("1000:44", "ada:x:1000:1001::/home/ada\nada:x:7:7::/:\n", "video:x:44:ada,bob\nwheel:x:10:ada\n")
	f.Add("bob", "bob:x:-1:4294967296:::\n\r\n#", "bob:x:99999999999999999999:bob\n")
	f.Add("ada:", "ada:x:1000:1000::relative:\n", "")
	f.Add("0", ":::::::\n", strings.Repeat("a:x:1:", 100))
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		a, err := ResolveUser(fstest.MapFS{"etc/passwd": {Data: []byte(passwd)}, "etc/group": {Data: []byte(group)}}, name)
		if err == nil && (a.UID > 1<<31-1 || a.GID > 1<<31-1 || a.Home != "" && !absolute(a.Home)) {
			t.Errorf("%+v", a)
		}
	})
}
