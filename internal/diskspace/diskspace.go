// Package diskspace keeps some space of a disk free: new work is refused before the disk is
// full, so that running work can still end.
package diskspace

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Floor is the space to keep free on a disk. The zero Floor refuses nothing. It is safe for
// concurrent use.
type Floor struct {
	// Path is any file or directory on the disk.
	Path string
	// Free is in bytes. At most half of a disk is kept free.
	Free int64
}

// LowError says that a disk has too little space left. It is of class
// errdefs.ErrResourceExhausted.
type LowError struct {
	Path      string
	Left      int64 // bytes that are free
	Free      int64 // to be kept free
	Requested int64
}

func (e *LowError) Error() string {
	return fmt.Sprintf("the disk of %s has %s left, and %s of it stay free (min_free): make room on it, or lower min_free",
		e.Path, inMiB(e.Left), inMiB(e.Free))
}

// Unwrap returns the class.
func (e *LowError) Unwrap() error { return errdefs.ErrResourceExhausted }

func inMiB(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// Capacity returns the size of the disk in bytes, 0 if it is not known.
func (f Floor) Capacity() int64 {
	var disk unix.Statfs_t
	if err := unix.Statfs(f.Path, &disk); err != nil {
		return 0
	}
	return int64(disk.Blocks) * disk.Bsize
}

// Check returns *LowError if the disk would have less than the floor left after more bytes
// are written. A disk that cannot be examined counts as having room: the write itself then
// reports the error.
func (f Floor) Check(more int64) error {
	if f.Free <= 0 {
		return nil
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(f.Path, &disk); err != nil || disk.Blocks == 0 { // some file systems do not say
		return nil
	}
	floor := min(f.Free, int64(disk.Blocks)*disk.Bsize/2)
	if left := int64(disk.Bavail) * disk.Bsize; left-max(more, 0) < floor {
		return &LowError{Path: f.Path, Left: left, Free: floor, Requested: more}
	}
	return nil
}
