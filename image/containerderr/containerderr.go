// Package containerderr recognizes errors of containerd, its client library and
// the OCI runtimes that it calls by their texts, where the text says more than the
// error's class or gRPC does not transmit the class. All such texts are in this
// package; its test provokes each error, or searches for the text in the source of
// the version that go.mod pins.
package containerderr

import (
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// The texts. Those of system calls are strerror(3)'s, in Go's spelling.
const (
	noSpace       = "no space left on device"
	quotaExceeded = "disk quota exceeded"
	readOnly      = "read-only file system"
	ioError       = "input/output error"

	noMemory     = "cannot allocate memory"
	tryAgain     = "resource temporarily unavailable"
	tooManyFiles = "too many open files"

	unexpectedDigest = "unexpected commit digest"
	unexpectedSize   = "unexpected commit size"
	wrongDiffID      = "wrong diff id"

	schemaOne      = "is no longer supported since containerd"
	noPlatform     = "no match for platform"
	snapshotExists = "file exists"
	brokenWrite    = "failed to send write: EOF"

	tokenFetch          = "failed to fetch oauth token"
	anonymousTokenFetch = "failed to fetch anonymous token"

	execNotFound   = "not found in $PATH" // runc's and crun's
	execNoFile     = "no such file or directory"
	execOfStart    = "exec: "
	execOfStartOld = "unable to start container process"
)

func has(err error, texts ...string) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(text, t) })
}

// Core returns the informative part of an error's text: it cuts the prefixes before
// a text of this package, which differ between releases, the class at the end, and,
// where the error joins several attempts, all lines after the first. An error with
// none of the texts keeps its prefixes.
func Core(err error) string {
	text := err.Error()
	for _, known := range []string{execOfStart, unexpectedDigest, unexpectedSize, wrongDiffID} {
		if i := strings.Index(text, known); i >= 0 {
			text, _, _ = strings.Cut(text[i:], "\n")
			break
		}
	}
	for _, class := range []string{": unknown", ": failed precondition"} {
		text = strings.TrimSuffix(text, class)
	}
	return text
}

// DiskFull reports whether a disk or a quota is full.
func DiskFull(err error) bool { return has(err, noSpace, quotaExceeded) }

// ShortOfResources reports whether the machine ran out of memory, processes or file
// descriptors, which may pass.
func ShortOfResources(err error) bool { return has(err, noMemory, tryAgain, tooManyFiles) }

// DiskBroken reports whether a disk returned an I/O error.
func DiskBroken(err error) bool { return has(err, ioError) }

// CgroupsReadOnly reports whether a runtime could not create control groups, for
// example because containerd runs in a container without write access to them.
func CgroupsReadOnly(err error) bool { return has(err, readOnly) && has(err, "/sys/fs/cgroup/") }

// WrongContent reports whether data from a registry does not have the digest and size
// of its descriptor, or a layer does not unpack to the image configuration's diff id.
func WrongContent(err error) bool {
	return has(err, unexpectedDigest, unexpectedSize, wrongDiffID)
}

// WrongCommit reports whether data written to the content store does not have the
// expected digest or size. The store keeps such data and resumes it, unless the
// ingest is aborted.
func WrongCommit(err error) bool { return has(err, unexpectedDigest, unexpectedSize) }

// SchemaOne reports whether an image's manifest has Docker's schema 1.
func SchemaOne(err error) bool { return has(err, schemaOne) }

// NoPlatform reports whether an index has no manifest for the platform.
func NoPlatform(err error) bool { return has(err, noPlatform) }

// SnapshotInTheWay reports whether a snapshotter found a directory that is not in its
// database. containerd leaves one when it is killed while it creates a snapshot. The
// call that fails removes the directory, so the same call can be retried.
func SnapshotInTheWay(err error) bool { return has(err, snapshotExists) }

// Unreachable reports whether the connection to containerd broke. A content writer
// reports that as an EOF without a class.
func Unreachable(err error) bool {
	return errdefs.IsUnavailable(err) || err != nil && strings.HasSuffix(err.Error(), brokenWrite)
}

// TokenRefused reports whether the error is a response of the registry's token server.
func TokenRefused(err error) bool { return has(err, tokenFetch, anonymousTokenFetch) }

// NoProgram reports whether a runtime did not find the program of a container's
// command.
func NoProgram(err error) bool {
	return has(err, execNotFound) || has(err, execOfStart, execOfStartOld) && has(err, execNoFile)
}
