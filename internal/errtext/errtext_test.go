package errtext

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOf(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("row 1: invalid argument"), "row 1: invalid argument"}, // its own words, and no class
		{fmt.Errorf("the hook is not installed: %w", errdefs.ErrFailedPrecondition), "the hook is not installed"},
		{fmt.Errorf("load: %w", fmt.Errorf("bad spec: %w", errdefs.ErrInvalidArgument)), "load: bad spec"},
		{fmt.Errorf("%w: %w", fmt.Errorf("the spec is bad: %w", errdefs.ErrInvalidArgument), errdefs.ErrFailedPrecondition), "the spec is bad"},
		{fmt.Errorf("image a: %w", errdefs.ErrNotFound), "image a: not found"},
		{fmt.Errorf("%w: of model a", errdefs.ErrInternal), "internal: of model a"},
		{errdefs.ErrInternal, "internal"},
	} {
		if got := Of(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}
