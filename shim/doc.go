// Package shim lets a runner outlive the daemon.
//
// A small process, shepherd-shim (implemented in package server), runs for each
// runner. It is the runner's parent, or watches the runner's process in a container.
// It speaks ZeroMQ to the runner and the protocol of this package to the daemon, and
// keeps an answer until the daemon has acknowledged it. A daemon that was killed and is
// started again finds the directories of its shims and attaches to them.
//
// # A life's directory
//
// A life is one runner with its shim, from start to end. It has a directory, mode 0700,
// whose name is the life's random id:
//
//	spec.json     what to run; written by the daemon before the shim starts
//	state.json    the processes, for cleaning up after a shim that was killed
//	outcome.json  the job under way, the answers not acknowledged, the exit
//	socket        the daemon connects here; mode 0600
//	stdout        FIFOs of a container's output
//	stderr
//
// A running shim holds a lock (flock) on the directory, so whether it is alive is never
// guessed from a process id. The daemon creates the directory, and removes it when the
// life has been settled. Files are replaced by rename, so they are complete whichever
// process is killed. They are not synced to disk: after a reboot only the files are left
// of a life, and Settle does not trust what they say about a job then.
//
// # The protocol
//
// Both sides send messages, each a JSON object preceded by its length, four
// bytes, big endian. The daemon begins with hello and its protocol version; the
// shim answers hello with its own, followed by the answers it keeps and the exit
// if there is one. Requests of the daemon that carry a number are each answered by
// a reply with that number. Where the versions differ only stop and release are
// served: these, and hello, are the same in all versions.
//
// Additions since the first release are features, and each side lists in its hello
// those it supports. A message that belongs to a feature is sent only to a side that
// supports it, so a shim outlives upgrades and downgrades of the daemon. The version
// changes only if a feature does not suffice.
//
// A connection that says hello supersedes an earlier one. The earlier one is told if it
// supports that (feature superseded). If a connection ends for any other reason while
// the shim holds the lock, the daemon connects again, and both sides continue where they
// were.
package shim
