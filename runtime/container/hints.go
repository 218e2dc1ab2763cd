package container

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/shim"
)

// What programs print when they hit a limit of their container: the messages of the
// C library, and those of languages and tools that do not use it.
var (
	noNetwork = regexp.MustCompile(`(?i)temporary failure in name resolution|name or service not known|network is unreachable|could not resolve (host|proxy)|` +
		`no address associated with hostname|nodename nor servname|getaddrinfo|eai_again|enotfound|dial tcp: lookup|dns error|failed to resolve|max retries exceeded with url`)
	fullShm   = regexp.MustCompile(`(?i)bus error|insufficient shared memory|unable to (open|mmap|allocate) shared memory|/dev/shm.*no space left|no space left.*/dev/shm`)
	noThreads = regexp.MustCompile(`(?i)can't start new thread|thread creation failed|pthread_create.*resource temporarily unavailable|fork: (retry|resource temporarily unavailable)|` +
		`failed to create (new )?(os )?thread|cannot fork|blockingioerror.*resource temporarily unavailable`)
)

// hint returns advice on which key of the sheep's configuration to change, if the
// runner's exit or the end of its log suggests that it hit that limit; else "".
func (o *Options) hint(exit *shim.Exit, machine oci.Host) string {
	if exit.Stopped || exit.Lost || exit.OutOfMemory || exit.StartError != "" || exit.Code == 0 {
		return ""
	}
	switch isolated := o.Network == "" || oci.Network(o.Network) == oci.NetworkNone; {
	case isolated && noNetwork.MatchString(exit.LastLog):
		return "it has no network (`network: none`): put what it fetches into the image or a mount, or set the sheep's `network` to `cni` or `host`"
	case exit.Signal == "SIGBUS" || fullShm.MatchString(exit.LastLog):
		return fmt.Sprintf("its /dev/shm may be full (%s): raise the sheep's `shm_size`", o.shmText())
	case noThreads.MatchString(exit.LastLog):
		limit := o.Pids
		if limit == 0 {
			limit = oci.DefaultPids(machine.CPUs)
		}
		if limit > 0 {
			return fmt.Sprintf("it may have as many processes and threads as it is allowed (%d): raise the sheep's `pids`, or have it use fewer threads (OMP_NUM_THREADS)", limit)
		}
	}
	return ""
}

// shmText describes the size of /dev/shm for a message.
func (o *Options) shmText() string {
	switch {
	case o.ShmSize > 0:
		return fmt.Sprintf("%d bytes", o.ShmSize)
	case o.Memory > 0:
		return "half of its memory"
	}
	return "half of the machine's memory"
}

// addHint appends the hint to an exit's Detail, unless it is there already.
func (c *containers) addHint(exit *shim.Exit) {
	hint := c.options.hint(exit, c.host.machine().Host)
	switch {
	case hint == "" || strings.Contains(exit.Detail, hint):
	case exit.Detail == "":
		exit.Detail = hint
	default:
		exit.Detail += "; " + hint
	}
}
