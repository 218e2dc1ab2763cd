package shimmed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/runtime"
)

// libexec is where packages put programs that are not for people.
const libexec = "/usr/libexec/shepherd"

const shimName = "shepherd-shim"

// FindShim finds the shepherd-shim program: the given one, or, where it is empty,
// beside this program, on PATH or in /usr/libexec/shepherd. The error is a
// *runtime.LoadError.
func FindShim(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	var places []string
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(self), shimName))
	}
	if path, err := exec.LookPath(shimName); err == nil {
		places = append(places, path)
	}
	places = append(places, filepath.Join(libexec, shimName))
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", &runtime.LoadError{
		Message: fmt.Sprintf("%s is not installed: it belongs beside this program (%s), on PATH or in %s", shimName, filepath.Dir(places[0]), libexec),
		Class:   errdefs.ErrFailedPrecondition,
	}
}
