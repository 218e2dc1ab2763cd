package container

import (
	"testing"

	"github.com/iterait/shepherd/shim"
)

// What containerd knows completes what the shim saw: a count of kills for memory that
// others may have caused counts where SIGKILL was the end.
func TestComplete(t *testing.T) {
	unknown := shim.Exit{Code: -1}
	nearby := shim.Exit{Code: -1, OOMNearby: true}
	for name, c := range map[string]struct {
		seen  shim.Exit
		known *ending
		want  shim.Exit
	}{
		"a code":                              {unknown, &ending{3}, shim.Exit{Code: 3}},
		"a signal":                            {unknown, &ending{137}, shim.Exit{Code: 137, Detail: "as after SIGKILL"}},
		"SIGKILL beside a kill for memory":    {nearby, &ending{137}, shim.Exit{Code: 137, Detail: "as after SIGKILL", OOMNearby: true, OutOfMemory: true}},
		"SIGTERM beside a kill for memory":    {nearby, &ending{143}, shim.Exit{Code: 143, Detail: "as after SIGTERM", OOMNearby: true}},
		"an error beside a kill for memory":   {nearby, &ending{1}, shim.Exit{Code: 1, OOMNearby: true}},
		"what the shim knows stays":           {shim.Exit{Code: -1, Signal: "SIGSEGV"}, &ending{137}, shim.Exit{Code: -1, Signal: "SIGSEGV"}},
		"a task that somebody else removed":   {unknown, nil, shim.Exit{Code: -1, Lost: true, Detail: "its task was removed from containerd by somebody else, or containerd's shim died"}},
		"a task that was removed by the stop": {shim.Exit{Code: -1, Stopped: true}, nil, shim.Exit{Code: -1, Stopped: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if complete(&c.seen, c.known); c.seen != c.want {
				t.Errorf("got %+v, want %+v", c.seen, c.want)
			}
		})
	}
}
