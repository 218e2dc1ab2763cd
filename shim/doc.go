// Package shim is how the daemon keeps a runner that outlives it.
//
// One small process, shepherd-shim (package server is its inside), stands
// between the daemon and each running runner. It is the runner's parent, or
// watches it where it runs in a container, speaks ZeroMQ to it and the protocol
// of this package to the daemon, and keeps an answer until the daemon has
// acknowledged it. A daemon that is killed comes
// back, finds the folders of its shims and attaches to them.
//
// # The folder of a life
//
// A life is one runner with its shim, from start to end. It has a folder, mode
// 0700, whose name is the life's random id:
//
//	spec.json     what to run; written by the daemon before the shim starts
//	state.json    what runs; for who cleans up after a shim that was killed
//	outcome.json  the job under way, the answers not acknowledged, the exit
//	socket        where the daemon connects; mode 0600
//	stdout        FIFOs of a container's output
//	stderr
//
// A shim holds a lock (flock) on the folder as long as it lives, so whether one
// lives is never guessed from a process id. The folder belongs to the daemon: it
// makes it, and removes it when the life has been settled. Files are replaced by
// rename, so they survive the death of any process whole; they are not synced to
// disk, because on another boot nothing of a life is left but its files, and
// what those say of a job is not trusted then (see Settle).
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
// What was added since the first release is a feature, and each side names in its
// hello those it understands. A message of a feature goes only to a side that
// named it, so a shim outlives upgrades and downgrades of the daemon. The version
// changes only where that will not do.
//
// A connection that says hello supersedes an earlier one, which is told so where
// it understands that (feature superseded). Any other end of a connection means
// nothing as long as the shim holds the lock: the daemon connects again, and both
// sides go on where they were.
package shim
