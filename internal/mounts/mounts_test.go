package mounts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "nfs"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "nfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	table := "# a comment\n\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\nbroken\n" +
		"server:/x " + dir + "/nfs/ nfs nofail,_netdev 0 0\n" +
		"/dev/sdb1\t" + dir + "/nfs/deep ext4 noauto\n" +
		`/dev/sdc1 /mnt/with\040space\011tab ext4` + "\n"
	if err := os.WriteFile(dir+"/fstab", []byte(table), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/srv-models.mount", []byte("[Unit]\nDescription=x\n\n[Mount]\nWhat=server:/models\nWhere = /srv/models/\nType=nfs\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	points, err := Points(dir+"/fstab", dir)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func(string) (bool, error) { return false, nil }
	for _, test := range []struct {
		path, want string
		mounted    func(string) (bool, error)
	}{
		{"/", "", nothing},
		{"/var/lib/shepherd", "", nothing},
		{dir + "/nfsx/data", "", nothing},
		{dir + "/nfs", dir + "/nfs", nothing},
		{dir + "/nfs/data/of/jobs", dir + "/nfs", nothing},
		{dir + "/nfs/deep/data", dir + "/nfs/deep", nothing},
		{dir + "/link/data", dir + "/nfs", nothing},
		{"/mnt/with space\ttab/data", "/mnt/with space\ttab", nothing},
		{"/srv/models/digits/v1", "/srv/models", nothing},
		{dir + "/nfs/data", "", func(string) (bool, error) { return true, nil }},
		{dir + "/nfs/data", dir + "/nfs", func(string) (bool, error) { return false, fs.ErrNotExist }},
		// A mounted file system hides the listed ones above it.
		{dir + "/nfs/deep/data", "", func(p string) (bool, error) { return p == dir+"/nfs/deep", nil }},
	} {
		got, err := missing(points, test.path, test.mounted)
		if err != nil || got != test.want {
			t.Errorf("%s: got %q, %v; want %q", test.path, got, err, test.want)
		}
	}
	broken := errors.New("broken")
	if _, err := missing(points, dir+"/nfs", func(string) (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if points, err := Points(dir+"/none", dir+"/none"); len(points) > 0 || err != nil {
		t.Errorf("without any list: %q, %v", points, err)
	}
	if _, err := Points(dir, dir); err == nil {
		t.Error("a directory was read as an fstab")
	}
	// The machine's own table: the file system of this test's files is mounted.
	if got, err := Missing("/"); got != "" || err != nil {
		t.Errorf("the root: %q, %v", got, err)
	}
}
