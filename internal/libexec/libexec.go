// Package libexec finds shepherd's helper programs, which packages install into a directory
// of their own and builds put beside the daemon.
package libexec

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// dir is the directory of such programs, relative to that of the daemon.
const dir = "../libexec/shepherd"

// Find returns the absolute path of a program: given or, if that is empty, the program with
// the name beside this one, in ../libexec/shepherd from there, or on PATH. The error says
// where it should be.
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
