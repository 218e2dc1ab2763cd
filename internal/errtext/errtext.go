// Package errtext has the text of an error as people read it.
package errtext

import (
	"errors"
	"strings"

	"github.com/containerd/errdefs"
)

// classes are those whose names say nothing to a person: the sentence before them has said
// what is wrong. Others, as "not found" and "unavailable", may be what an error has to say.
var classes = []error{
	errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, errdefs.ErrResourceExhausted, errdefs.ErrOutOfRange,
	errdefs.ErrDataLoss, errdefs.ErrAborted, errdefs.ErrInternal,
}

// Of is what err says without the names of such classes at the end.
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
