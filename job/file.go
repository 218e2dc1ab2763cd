package job

import (
	"io"
	"time"
)

// Names of a job's files, the same in its place in storage and in its working directory.
// They are the original shepherd's.
const (
	InputDir      = "inputs"
	OutputDir     = "outputs"
	DefaultInput  = "input"
	DefaultOutput = "output"
	StatusFile    = "job_status.json"
)

// File is one of a job's files, opened for reading. The caller closes Body.
type File struct {
	Body io.ReadCloser
	// Size is the size of the whole file in bytes.
	Size int64
	// Offset and Length are the part of the file that Body yields.
	Offset, Length int64
	// ETag is quoted as in HTTP, or empty.
	ETag     string
	Modified time.Time
}

// Range selects part of a file, as in HTTP: Length bytes from Offset, or to the end if
// Length is negative; a negative Offset counts from the end. The zero Range is invalid; a
// nil *Range selects the whole file.
type Range struct{ Offset, Length int64 }
