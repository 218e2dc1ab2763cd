package shepherd

import (
	"context"
	"fmt"
	"io"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// Logs opens what a sheep's runners have written, as runtime.Logger says. The
// error is *job.UnknownSheep or job.ErrNoLog, or has no class.
func (s *Shepherd) Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	l := s.env.flock.named(sheep)
	if l == nil {
		return nil, &job.UnknownSheep{Name: sheep}
	}
	logger, ok := l.Sheep.(runtime.Logger)
	if !ok {
		return nil, job.ErrNoLog
	}
	log, err := logger.Logs(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("open the log of sheep %s: %w", sheep, err)
	}
	return log, nil
}
