package shimmed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/runtime"
)

// libexec is where packages put programs that are not for people, seen from the
// directory of those that are.
const libexec = "../libexec/shepherd"

const shimName = "shepherd-shim"

// FindShim finds the shepherd-shim program: the given one, or, where it is empty,
// beside this program, in ../libexec/shepherd from there or on PATH. The error is a
// *runtime.LoadError.
func FindShim(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	beside := filepath.Dir(self)
	places := []string{filepath.Join(beside, shimName), filepath.Join(beside, libexec, shimName)}
	if path, err := exec.LookPath(shimName); err == nil {
		places = append(places, path)
	}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", &runtime.LoadError{
		Message: fmt.Sprintf("%s is not installed: it belongs beside this program (%s), in %s or on PATH", shimName, beside, filepath.Join(beside, libexec)),
		Class:   errdefs.ErrFailedPrecondition,
	}
}
