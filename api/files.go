package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/iterait/shepherd/job"
)

// FileService opens jobs' files.
type FileService interface {
	// Input opens one of the job's inputs, or a part of it; the caller closes
	// its Body. A part that reaches beyond the end is cut, a suffix longer than
	// the file is the whole file. It returns *job.UnknownJob, job.ErrNoFile and
	// job.ErrRange (no byte of the part is in the file).
	Input(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Output is Input for the job's results. It returns job.ErrNotReady as long
	// as the job has not ended, and *job.Failure with the client's message when
	// it ended without a result: failed or cancelled.
	Output(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Inputs yields the files that the job was submitted with, by name, and one error
	// at most, as the last thing. It yields *job.UnknownJob.
	Inputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error]

	// Outputs yields the job's results, by name, and one error at most, as the last
	// thing. Its errors are those of Output.
	Outputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error]

	// Presign gives files that Inputs or Outputs yielded, below job.InputDir or
	// job.OutputDir, addresses that are valid for a time. It returns job.ErrNoAddresses.
	Presign(ctx context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error
}

// fileServer serves jobs' inputs and results.
type fileServer struct {
	answers
	jobIDs
	service interface {
		FileService
		Job(ctx context.Context, id job.ID) (job.Status, error)
	}
}

// stall is how long a client may read nothing before its connection is closed: a client
// that stops reading must not keep a file open for ever.
const stall = 5 * time.Minute

// longestName is the longest file name there can be, in bytes: that of an S3
// object.
const longestName = 1024

// GetResult answers GET /jobs/{job_id}/result.
func (s *fileServer) GetResult(w http.ResponseWriter, r *http.Request, rawID string) {
	s.file(w, r, rawID, job.DefaultOutput, s.service.Output)
}

// GetResultFile answers GET /jobs/{job_id}/result/{file}.
func (s *fileServer) GetResultFile(w http.ResponseWriter, r *http.Request, rawID, file string) {
	s.file(w, r, rawID, file, s.service.Output)
}

// GetInput answers GET /jobs/{job_id}/input.
func (s *fileServer) GetInput(w http.ResponseWriter, r *http.Request, rawID string) {
	s.file(w, r, rawID, job.DefaultInput, s.service.Input)
}

// GetInputFile answers GET /jobs/{job_id}/input/{file}.
func (s *fileServer) GetInputFile(w http.ResponseWriter, r *http.Request, rawID, file string) {
	s.file(w, r, rawID, file, s.service.Input)
}

// opener is Input or Output of a FileService.
type opener func(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

func (s *fileServer) file(w http.ResponseWriter, r *http.Request, rawID, rawName string, open opener) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	name, ok := fileName(rawName)
	if !ok {
		// The job's own errors come first, as with a name that could be there.
		if _, err = s.service.Job(r.Context(), id); err == nil {
			err = job.ErrNoFile
		}
		s.fail(w, r, err)
		return
	}

	asked, err := openFile(r, id, name, open)
	switch {
	case errors.Is(err, job.ErrNotReady):
		s.answer(w, r, http.StatusAccepted, Ready{Ready: false})
		return
	case err != nil:
		s.fail(w, r, err)
		return
	}
	defer asked.Body.Close()

	h := w.Header()
	setValidators(h, asked.File)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Cache-Control", "no-cache") // a job may be run again: keep, but ask
	switch asked.status {
	case http.StatusNotModified:
		w.WriteHeader(asked.status)
		return
	case http.StatusPreconditionFailed:
		s.fail(w, r, errPrecondition)
		return
	case http.StatusRequestedRangeNotSatisfiable:
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", asked.Size))
		s.fail(w, r, job.ErrRange)
		return
	case http.StatusPartialContent:
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", asked.Offset, asked.Offset+asked.Length-1, asked.Size))
	}
	h.Set("Content-Type", typeByName(name))
	h.Set("Content-Security-Policy", filePolicy)
	s.stream(w, r, asked)
}

// fileName decodes a file's name from a path. It refuses names that no file of
// a job can have, among them all that would lead out of the job's place.
func fileName(raw string) (string, bool) {
	name, err := url.PathUnescape(raw)
	if err != nil || len(name) > longestName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return "", false
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element == "." || element == ".." {
			return "", false
		}
	}
	return name, true
}

// buffers are reused for copying files.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// stream sends asked's bytes. Headers are sent with the first of them, so that a storage
// error before that is still answered as an error.
func (s *fileServer) stream(w http.ResponseWriter, r *http.Request, asked *askedFile) {
	w.Header().Set("Content-Length", strconv.FormatInt(asked.Length, 10))
	if r.Method == http.MethodHead {
		w.WriteHeader(asked.status)
		return
	}
	unbounded(w)
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	control := http.NewResponseController(w)
	body := io.LimitReader(asked.Body, asked.Length)

	for sent := int64(0); ; {
		n, err := io.ReadFull(body, buffer[:min(int64(len(buffer)), max(asked.Length-sent, 1))])
		ended := err == io.EOF || err == io.ErrUnexpectedEOF
		if ended && sent+int64(n) < asked.Length {
			err = fmt.Errorf("%w: the file ended after %d of %d bytes", io.ErrUnexpectedEOF, sent+int64(n), asked.Length)
		} else if ended {
			err = nil
		}
		if err != nil {
			s.breakOff(w, r, err, sent)
			return
		}
		if sent == 0 {
			w.WriteHeader(asked.status)
		}
		_ = control.SetWriteDeadline(time.Now().Add(stall)) // not every writer has deadlines
		if _, err := w.Write(buffer[:n]); err != nil {
			return // the client has left
		}
		if sent += int64(n); sent == asked.Length {
			break
		}
	}
	// What is still buffered goes out under the deadline, which must not outlive
	// this answer: the connection may wait long for its next request.
	_ = control.Flush()
	_ = control.SetWriteDeadline(time.Time{})
}

// breakOff ends an answer whose file cannot be read to its end: as an error before the
// headers were sent, later by closing the connection, so that the client does not take
// a part for the whole.
func (s *fileServer) breakOff(w http.ResponseWriter, r *http.Request, err error, sent int64) {
	err = fmt.Errorf("read the file after %d bytes: %w", sent, err)
	if sent == 0 {
		h := w.Header()
		for _, name := range []string{"Etag", "Last-Modified", "Accept-Ranges", "Content-Range"} {
			h.Del(name)
		}
		s.fail(w, r, err)
		return
	}
	if r.Context().Err() == nil {
		s.log.ErrorContext(r.Context(), "download broken off", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	panic(http.ErrAbortHandler)
}
