package container

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/shim"
)

func TestHints(t *testing.T) {
	machine := oci.Host{CPUs: 64}
	for _, c := range []struct {
		log     string
		exit    shim.Exit
		options Options
		want    string // empty for none
	}{
		{log: "socket.gaierror: [Errno -3] Temporary failure in name resolution", want: "`network`"},
		{log: "curl: (6) Could not resolve host: weights.example.com", want: "`network`"},
		{log: "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='weights.example.com', port=443): Max retries exceeded with url: /m", want: "`network`"},
		{log: "dial tcp: lookup weights.example.com on [::1]:53: read: connection refused", want: "`network`"},
		{log: "Error: getaddrinfo EAI_AGAIN weights.example.com", want: "`network`"},
		{log: "OSError: [Errno 101] Network is unreachable", options: Options{Network: "none"}, want: "`network`"},
		{log: "OSError: [Errno 101] Network is unreachable", options: Options{Network: "cni"}, exit: shim.Exit{Code: 1}},
		{log: "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.", want: "`shm_size`"},
		{log: "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).", options: Options{ShmSize: 1 << 20}, want: "(1048576 bytes): raise the sheep's `shm_size`"},
		{exit: shim.Exit{Code: -1, Signal: "SIGBUS"}, options: Options{Memory: 1 << 30}, want: "(half of its memory)"},
		{log: "OSError: [Errno 28] No space left on device: '/dev/shm/torch_7'", want: "`shm_size`"},
		{log: "OSError: [Errno 28] No space left on device: '/outputs/x'", exit: shim.Exit{Code: 1}},
		{log: "RuntimeError: can't start new thread", want: "(16384): raise the sheep's `pids`"},
		{log: "libgomp: Thread creation failed: Resource temporarily unavailable", options: Options{Pids: 100}, want: "(100)"},
		{log: "sh: fork: retry: Resource temporarily unavailable", options: Options{Pids: -1}, exit: shim.Exit{Code: 1}},
		{log: "ValueError: deliberate failure", exit: shim.Exit{Code: 1}},
		{log: "getaddrinfo", exit: shim.Exit{Code: 0}},
		{log: "getaddrinfo", exit: shim.Exit{Code: 1, Stopped: true}},
		{log: "getaddrinfo", exit: shim.Exit{Code: 1, Lost: true}},
		{log: "bus error", exit: shim.Exit{Code: 1, OutOfMemory: true}},
	} {
		exit := c.exit
		if c.want != "" && exit.Signal == "" {
			exit.Code = 1
		}
		exit.LastLog = c.log
		got := c.options.hint(&exit, machine)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q, %+v: got %q, want %q", c.log, c.exit, got, c.want)
		}
	}
}

func TestHintIsAddedOnce(t *testing.T) {
	c := &containers{host: newHost(Config{})}
	exit := shim.Exit{Code: 1, LastLog: "can't start new thread", Detail: "as after SIGABRT"}
	c.addHint(&exit)
	once := exit.Detail
	c.addHint(&exit)
	if exit.Detail != once || !strings.HasPrefix(once, "as after SIGABRT; ") || !strings.Contains(once, "`pids`") {
		t.Errorf("got %q, then %q", once, exit.Detail)
	}
}
