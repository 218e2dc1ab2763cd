// Package errtext formats errors for people.
package errtext

import (
	"errors"
	"strings"

	"github.com/containerd/errdefs"
)

// classes are the error classes whose names add nothing to the sentence before them. Others,
// such as "not found" and "unavailable", may be the actual message.
var classes = []error{
	errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, errdefs.ErrResourceExhausted, errdefs.ErrOutOfRange,
	errdefs.ErrDataLoss, errdefs.ErrAborted, errdefs.ErrInternal,
}

// Of returns err's text without the names of such classes at its end.
func Of(err error) string {
	text := err.Error()
	for {
		cut := text
		for _, class := range classes {
			if errors.Is(err, class) {
				cut = strings.TrimSuffix(cut, ": "+class.Error())
			}
		}
		if cut == text {
			return text
		}
		text = cut
	}
}
