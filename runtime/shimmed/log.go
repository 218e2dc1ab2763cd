package shimmed

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed/internal/logs"
	"github.com/iterait/shepherd/shim"
)

// output reads the logs of a sheep's runners.
type output struct {
	dir            string // of the sheep's state
	stdout, stderr string // files; empty is the log in dir
}

// logDir is the directory of the sheep's logs, runner.log and shim.log.
func (o *output) logDir() string { return filepath.Join(o.dir, "log") }

// Logs opens the logs of the sheep's runners. See runtime.Logger.
func (o *output) Logs(ctx context.Context, q job.LogQuery) (io.ReadCloser, error) {
	return logs.Open(ctx, logs.Options{Tail: q.Tail, Follow: q.Follow}, o.logFiles()...)
}

// BeginSpan begins a span of the log. See runtime.JobLogger.
func (o *output) BeginSpan() string { return logspan.Span{Begin: logs.End(o.logFiles()...)}.String() }

// EndSpan ends a span of the log. See runtime.JobLogger.
func (o *output) EndSpan(span string) string {
	parsed, err := logspan.Parse(span)
	if err != nil || parsed.End != nil {
		return span
	}
	parsed.End = make(logspan.Mark, len(parsed.Begin))
	copy(parsed.End, logs.End(o.logFiles()...))
	return parsed.String()
}

// JobLogs opens the log of a job. See runtime.JobLogger.
func (o *output) JobLogs(ctx context.Context, span string, q job.LogQuery) (runtime.JobLog, error) {
	parsed, err := logspan.Parse(span)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return logs.OpenSpan(ctx, parsed, logs.Options{Tail: q.Tail, Follow: q.Follow}, o.logFiles()...)
}

// logFiles lists the logs that the runner's output goes to, each once.
func (o *output) logFiles() []logs.File {
	var files []logs.File
	for _, path := range []string{o.stdout, o.stderr} {
		f := logs.File{Path: path}
		if path == "" {
			f = logs.File{Path: filepath.Join(o.logDir(), shim.RunnerLog), Keep: logKeep}
		}
		if !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	return files
}
