// Package containerderr recognizes errors of containerd, its client library and
// the runtimes that it calls by their texts, where these say more than the error's
// class, or the class is lost on the way over gRPC. It is the one place that
// knows such texts; its test provokes each of them, or looks for it in the source
// of the version that go.mod pins.
package containerderr

import (
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// The texts. Those of the kernel are strerror(3)'s, as Go writes them.
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

// Core is what an error says from the first of the texts of this package that is
// in it: without the chain of calls before, which differs from release to release,
// and without the class after. Where several tries are joined to one error, a line each,
// it is the first. Where there is none of the texts it is the whole.
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

// DiskFull reports whether a disk has no room, or a quota has none.
func DiskFull(err error) bool { return has(err, noSpace, quotaExceeded) }

// ShortOfResources reports whether the machine lacked memory, processes or files
// for the moment.
func ShortOfResources(err error) bool { return has(err, noMemory, tryAgain, tooManyFiles) }

// DiskBroken reports whether a disk failed to read or write.
func DiskBroken(err error) bool { return has(err, ioError) }

// CgroupsReadOnly reports whether a runtime cannot make control groups, as under a
// containerd that is itself in a container without write access to them.
func CgroupsReadOnly(err error) bool { return has(err, readOnly) && has(err, "/sys/fs/cgroup/") }

// WrongContent reports whether what a registry sent is not what it was asked for
// by digest and size, or does not unpack to what the image's configuration says.
func WrongContent(err error) bool {
	return has(err, unexpectedDigest, unexpectedSize, wrongDiffID)
}

// WrongCommit is WrongContent of what was written to the content store, which
// keeps it for a later attempt unless it is thrown away.
func WrongCommit(err error) bool { return has(err, unexpectedDigest, unexpectedSize) }

// SchemaOne reports whether an image is of Docker's schema 1.
func SchemaOne(err error) bool { return has(err, schemaOne) }

// NoPlatform reports whether an index has no manifest for the platform.
func NoPlatform(err error) bool { return has(err, noPlatform) }

// SnapshotInTheWay reports whether a snapshotter found a directory that its
// records do not know, as a containerd that was killed while it made a snapshot leaves
// it. The snapshotter has removed it then: the same call can be made again.
func SnapshotInTheWay(err error) bool { return has(err, snapshotExists) }

// Away reports whether the connection to containerd broke. To content that is
// being written that is a bare end of its stream, which has no class.
func Away(err error) bool {
	return errdefs.IsUnavailable(err) || err != nil && strings.HasSuffix(err.Error(), brokenWrite)
}

// TokenRefused reports whether it was a registry's token server that answered.
func TokenRefused(err error) bool { return has(err, tokenFetch, anonymousTokenFetch) }

// NoProgram reports whether a runtime did not find the program that a container
// is to run.
func NoProgram(err error) bool {
	return has(err, execNotFound) || has(err, execOfStart, execOfStartOld) && has(err, execNoFile)
}
