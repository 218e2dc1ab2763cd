// Package libexec finds the programs that belong to shepherd and are not for
// people: packages put them into a folder of their own, builds leave them beside
// the daemon.
package libexec

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// dir is where packages put such programs, seen from the directory of those that
// are for people.
const dir = "../libexec/shepherd"

// Find returns the absolute path of a program: the given one, or, where that is
// empty, the one of that name beside this program, in ../libexec/shepherd from
// there or on PATH. The error says where it belongs.
func Find(name, given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	beside := filepath.Dir(self)
	places := []string{filepath.Join(beside, name), filepath.Join(beside, dir, name)}
	if path, err := exec.LookPath(name); err == nil {
		places = append(places, path)
	}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("%s is not installed: it belongs beside this program (%s), in %s or on PATH", name, beside, filepath.Join(beside, dir))
}
