package job

import (
	"io"
	"time"
)

// The names of a job's files, below its place in storage and below its
// working directory alike. They are the original's.
const (
	InputDir      = "inputs"
	OutputDir     = "outputs"
	DefaultInput  = "input"
	DefaultOutput = "output"
	StatusFile    = "job_status.json"
)

// File is one of a job's files, opened for reading. The reader closes Body.
type File struct {
	Body io.ReadCloser
	// Size is the whole file's, in bytes.
	Size int64
	// Offset and Length say which part of the file Body yields.
	Offset, Length int64
	// ETag is quoted as in HTTP, or empty.
	ETag     string
	Modified time.Time
}

// Range asks for part of a file, as in HTTP: Length bytes from Offset, or to
// the end where Length is negative; a negative Offset counts from the end. The
// zero Range, Offset 0 and Length 0, is invalid: a nil *Range means all.
type Range struct{ Offset, Length int64 }
