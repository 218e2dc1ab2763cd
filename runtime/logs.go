package runtime

import (
	"context"
	"io"
	"strings"

	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
)

// Logger is a Sheep that keeps a log of its runners' output.
type Logger interface {
	// Logs opens the log of the sheep's runners, earlier ones included, from the
	// oldest line that is kept. It may be called at any time, several times
	// concurrently, whether a runner is up or not.
	//
	// Read returns io.EOF at the present end of the log or, if q follows, ctx's error
	// when ctx ends; rotation of the log and the end of the runner do not end it.
	Logs(ctx context.Context, q job.LogQuery) (io.ReadCloser, error)
}

// JobLogger is a Sheep that can read parts of its log. A part is named by a span: an
// opaque string of a few hundred bytes at most, valid as long as the log is kept. An open
// span has no end yet.
type JobLogger interface {
	// BeginSpan returns an open span that begins at the present end of the log.
	BeginSpan() string
	// EndSpan returns an open span with the present end of the log as its end. Any
	// other string is returned unchanged.
	EndSpan(span string) string
	// JobLogs opens a span: one of BeginSpan or EndSpan, messenger.Answer's Log, or
	// that of EventGiven for a job under way. An open span is read up to the present
	// end of the log or, if q follows, until JobLog.End is called or ctx ends. The
	// error is of class errdefs.ErrNotFound if the span is not kept any more, and
	// errdefs.ErrInvalidArgument if the string is not a span.
	JobLogs(ctx context.Context, span string, q job.LogQuery) (JobLog, error)
}

// JobLog reads the log of a job. Read and Close behave as for Logger.
type JobLog interface {
	io.ReadCloser
	// End sets the end of the job's log to that of the span: Read returns io.EOF
	// after it. It may be called while Read is under way.
	End(span string)
}

// The limits of LastLines.
const (
	lastLines = 5
	lastBytes = 2 << 10
)

// LastLines returns the last few lines of an open span, without control sequences, for a
// message; none if they cannot be read.
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
