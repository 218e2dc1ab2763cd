package shimmed

import (
	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/libexec"
	"github.com/iterait/shepherd/runtime"
)

// FindShim returns the path of the shepherd-shim program: the given one or, if that is
// empty, the one that package libexec finds. The error is a *runtime.LoadError.
func FindShim(given string) (string, error) {
	path, err := libexec.Find("shepherd-shim", given)
	if err != nil {
		return "", &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrFailedPrecondition}
	}
	return path, nil
}
