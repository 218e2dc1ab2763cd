package main

import (
	"os/exec"
	"testing"
	"time"
)

func TestDebianVersion(t *testing.T) {
	at := time.Date(2026, 11, 22, 16, 6, 15, 0, time.UTC)
	// In the order in which Debian is to see them.
	ordered := []struct{ described, want string }{
		{"fd22763", "0~20261122160615.gfd22763"},
		{"fd22763-dirty", "0~20261122160615.gfd22763+dirty"},
		{"v0.9.0", "0.9.0"},
		{"v1.2.0-rc1", "1.2.0~rc1"},
		{"v1.2.0-rc1-7-gabc1234", "1.2.0~rc1+7.gabc1234"},
		{"v1.2.0-rc2", "1.2.0~rc2"},
		{"v1.2.0", "1.2.0"},
		{"1.2.0-5-gabc1234", "1.2.0+5.gabc1234"},
		{"v1.2.0-11-gabc1234", "1.2.0+11.gabc1234"},
		{"v1.2.0-11-gabc1234-dirty", "1.2.0+11.gabc1234+dirty"},
		{"v1.2.1", "1.2.1"},
	}
	var before string
	for _, v := range ordered {
		got := debianVersion(v.described, at)
		if got != v.want {
			t.Errorf("%s: got %s, want %s", v.described, got, v.want)
		}
		if before != "" {
			if out, err := exec.Command("dpkg", "--compare-versions", before, "lt", got).CombinedOutput(); err != nil {
				t.Errorf("dpkg does not take %s for newer than %s: %v %s", got, before, err, out)
			}
		}
		before = got
	}
	for _, odd := range []string{"unknown", "1234567", "feature/x_y"} {
		got := debianVersion(odd, at)
		if out, err := exec.Command("dpkg", "--validate-version", got).CombinedOutput(); err != nil {
			t.Errorf("%s became %s, which dpkg refuses: %v %s", odd, got, err, out)
		}
	}
}
