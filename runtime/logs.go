package runtime

import (
	"context"
	"io"
	"strings"

	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
)

// Logger is a Sheep that keeps what its runners write.
type Logger interface {
	// Logs opens what the sheep's runners have written, earlier ones' included,
	// from the oldest that is kept. It may be called at any time and any number
	// of times at once, whether a runner is up or not.
	//
	// Read ends with io.EOF at the end of what there was or, following, with
	// ctx's error once ctx has ended; rotation of the log and the end of the
	// runner do not end it.
	Logs(ctx context.Context, q job.LogQuery) (io.ReadCloser, error)
}

// JobLogger is a Sheep that knows which part of its log was written when. A part is
// named by a span: opaque text of some hundred bytes at most, good for as long as
// the log is kept. A span that is open has no end yet.
type JobLogger interface {
	// BeginSpan is an open span of what will be written from now on.
	BeginSpan() string
	// EndSpan is the span with its end here, where it is open. What is no span
	// stays as it is.
	EndSpan(span string) string
	// JobLogs opens a span: one of BeginSpan's or EndSpan's, messenger.Answer's Log,
	// or the one that EventGiven tells for a job under way. An open span is read up
	// to now or, following, until JobLog.End is called, or ctx ends. The error is of
	// class errdefs.ErrNotFound where nothing of it is kept any more, and
	// errdefs.ErrInvalidArgument for what is no span.
	JobLogs(ctx context.Context, span string, q job.LogQuery) (JobLog, error)
}

// JobLog is the log of a job being read. Read and Close are as Logger's.
type JobLog interface {
	io.ReadCloser
	// End says where the job's lines end, by the span that has an end: Read returns
	// io.EOF after them. It may be called while Read is under way.
	End(span string)
}

// Bounds of what LastLines returns.
const (
	lastLines = 5
	lastBytes = 2 << 10
)

// LastLines is the last few lines of a span that is open, cleaned, for a message;
// none where they cannot be read.
func LastLines(ctx context.Context, from JobLogger, span string) []string {
	log, err := from.JobLogs(ctx, span, job.LogQuery{Tail: lastLines})
	if err != nil {
		return nil
	}
	defer log.Close()
	text, err := io.ReadAll(io.LimitReader(log, lastBytes))
	if err != nil {
		return nil
	}
	var lines []string
	for line := range strings.Lines(logtext.Clean(string(text))) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
