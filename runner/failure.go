package runner

import (
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strings"

	"github.com/iterait/shepherd/job"
)

// The limits of a failure's parts in bytes. Even if JSON escaping makes them longer, they
// stay below messenger.MaxMessage together.
const (
	maxMessage   = 64 << 10
	maxTraceback = 512 << 10
)

// errGone is the error of a handler that ended its goroutine (runtime.Goexit).
var errGone = errors.New("the handler ended without returning")

// panicError is a handler's panic.
type panicError struct {
	value any
	stack []byte
}

// newPanic is called by the deferred function that recovered value.
func newPanic(value any) error { return &panicError{value: value, stack: debug.Stack()} }

func (e *panicError) Error() string { return fmt.Sprint(e.value) }

// failureOf converts a handler's error to a failure in the form of a Python exception:
// message "Type: text", type, and traceback.
func failureOf(err error) *job.Failure {
	var given *job.Failure
	if errors.As(err, &given) {
		f := *given
		return bounded(&f)
	}
	var p *panicError
	if errors.As(err, &p) {
		return bounded(&job.Failure{Message: "panic: " + p.Error(), Type: "panic", Traceback: string(p.stack)})
	}
	chain := unwrapped(err)
	name, typ := "Error", "error"
	for _, e := range chain {
		if n, ok := exportedType(e); ok {
			name, typ = n, fmt.Sprintf("%T", e)
			break
		}
	}
	f := &job.Failure{Message: name + ": " + err.Error(), Type: typ}
	if len(chain) > 1 {
		var lines strings.Builder
		for _, e := range chain {
			fmt.Fprintf(&lines, "%T: %v\n", e, e)
		}
		f.Traceback = lines.String()
	}
	return bounded(f)
}

// unwrapped returns err and all errors that it wraps, outermost first.
func unwrapped(err error) []error {
	chain := []error{err}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			chain = append(chain, unwrapped(inner)...)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			chain = append(chain, unwrapped(inner)...)
		}
	}
	return chain
}

// exportedType returns the name of an error's type, and whether the type is exported:
// those of errors.New and fmt.Errorf are not, and say nothing.
func exportedType(err error) (string, bool) {
	t := reflect.TypeOf(err)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name := t.Name()
	return name, name != "" && name[0] >= 'A' && name[0] <= 'Z'
}

func bounded(f *job.Failure) *job.Failure {
	f.Message, f.Type, f.Traceback = cut(f.Message, maxMessage), cut(f.Type, 1<<10), cut(f.Traceback, maxTraceback)
	return f
}

func cut(s string, longest int) string {
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + " …"
}
