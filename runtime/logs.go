package runtime

import (
	"context"
	"io"

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

// JobLogger is a Sheep that knows which part of its log was written during which
// job.
type JobLogger interface {
	// JobLogs opens what the runner wrote during a job. Span is messenger.Answer's
	// Log, or that of EventGiven for a job under way, whose log has no end yet: it
	// is read up to now or, following, until ctx ends. The error is of class
	// errdefs.ErrNotFound where nothing of it is kept any more, and
	// errdefs.ErrInvalidArgument for what is no span.
	JobLogs(ctx context.Context, span string, follow bool) (io.ReadCloser, error)
}
