package api

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// ListInputs answers GET /jobs/{job_id}/inputs.
func (s *fileServer) ListInputs(w http.ResponseWriter, r *http.Request, rawID string, params ListInputsParams) {
	s.listFiles(w, r, rawID, job.InputDir, s.service.Inputs, params.Presign)
}

// ListOutputs answers GET /jobs/{job_id}/outputs.
func (s *fileServer) ListOutputs(w http.ResponseWriter, r *http.Request, rawID string, params ListOutputsParams) {
	s.listFiles(w, r, rawID, job.OutputDir, s.service.Outputs, params.Presign)
}

// maxPresign is how long an address of a file is valid at most, as S3 has it.
const maxPresign = 7 * 24 * time.Hour

func (s *fileServer) listFiles(w http.ResponseWriter, r *http.Request, rawID, dir string, list func(context.Context, job.ID) ([]job.FileInfo, error), presign *string) {
	id, err := s.jobID(r, rawID)
	var valid time.Duration
	if err == nil && presign != nil {
		if valid, err = parseTimeout(*presign); err != nil || valid < time.Second || valid > maxPresign {
			err = &job.Invalid{Field: "presign", Problem: "must be a number of seconds such as 900, or a duration such as 2h, from a second to 168h"}
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	files, err := list(r.Context(), id)
	if err == nil && valid > 0 {
		err = s.service.Presign(r.Context(), id, dir, files, valid)
		w.Header().Set("Cache-Control", "no-store") // addresses are as good as credentials
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if len(files) > streamedFiles {
		if err := streamFiles(w, files); err != nil {
			panic(http.ErrAbortHandler) // so that the client does not take a part for the whole
		}
		return
	}
	answer := FileList{Files: make([]FileEntry, len(files))}
	for i, f := range files {
		answer.Files[i] = fileEntry(f)
		answer.Bytes += f.Size
	}
	s.answer(w, r, http.StatusOK, answer)
}

func fileEntry(f job.FileInfo) FileEntry {
	return FileEntry{Name: f.Name, Size: f.Size, Etag: orNull(f.ETag), ModifiedAt: job.FormatTime(f.Modified), Address: orNull(f.Address)}
}

// streamedFiles is how many files are listed at most in an answer that is made whole
// before it is sent.
const streamedFiles = 10_000

// streamFiles writes a FileList entry by entry: that of a million files would take
// hundreds of megabytes.
func streamFiles(w http.ResponseWriter, files []job.FileInfo) error {
	h := w.Header()
	h.Set("Content-Type", jsonType)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	unbounded(w)
	steady := &steadyWriter{to: w, control: http.NewResponseController(w)}
	to := bufio.NewWriter(steady)
	bytes := int64(0)
	for _, f := range files {
		bytes += f.Size
	}
	fmt.Fprintf(to, `{"bytes": %d, "files": [`, bytes) // its error stays, and Flush returns it
	for i, f := range files {
		text, err := job.JSON(fileEntry(f))
		if err != nil {
			return err
		}
		if i > 0 {
			_, _ = to.WriteString(", ")
		}
		_, _ = to.Write(text)
	}
	_, _ = to.WriteString("]}")
	err := to.Flush()
	_ = steady.control.SetWriteDeadline(time.Time{})
	return err
}

// archive is a file that others are put into, as it is sent.
type archive interface {
	// add begins a file. Its content is written to what add returns before the next
	// one.
	add(name string, f *job.File) (io.Writer, error)
	// Close completes the archive.
	Close() error
}

// GetOutputsZip answers GET /jobs/{job_id}/outputs.zip.
func (s *fileServer) GetOutputsZip(w http.ResponseWriter, r *http.Request, rawID string) {
	s.sendArchive(w, r, rawID, "zip", "application/zip", func(to io.Writer) archive { return zipArchive{zip.NewWriter(to)} })
}

// GetOutputsTar answers GET /jobs/{job_id}/outputs.tar.
func (s *fileServer) GetOutputsTar(w http.ResponseWriter, r *http.Request, rawID string) {
	s.sendArchive(w, r, rawID, "tar", "application/x-tar", func(to io.Writer) archive { return tarArchive{tar.NewWriter(to)} })
}

func (s *fileServer) sendArchive(w http.ResponseWriter, r *http.Request, rawID, suffix, contentType string, begin func(io.Writer) archive) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	files, err := s.service.Outputs(r.Context(), id)
	var first *job.File
	if err == nil && len(files) > 0 && r.Method != http.MethodHead {
		first, err = s.service.Output(r.Context(), id, files[0].Name, nil) // an error is still an answer of its own
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", string(id)+"-outputs."+suffix))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	unbounded(w)
	to := &steadyWriter{to: w, control: http.NewResponseController(w)}
	if err := s.fillArchive(r.Context(), begin(to), id, files, first); err != nil {
		if to.err == nil && r.Context().Err() == nil {
			s.log.ErrorContext(r.Context(), "archive broken off", "path", r.URL.Path, "request", requestID(r.Context()), "error", err)
		}
		panic(http.ErrAbortHandler) // so that the client does not take a part for the whole
	}
	_ = to.control.Flush()
	_ = to.control.SetWriteDeadline(time.Time{})
}

// fillArchive writes the files, of which the first is open, and closes it.
func (s *fileServer) fillArchive(ctx context.Context, a archive, id job.ID, files []job.FileInfo, first *job.File) error {
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	for i, info := range files {
		f := first
		if i > 0 {
			var err error
			f, err = s.service.Output(ctx, id, info.Name, nil)
			if errors.Is(err, job.ErrNoFile) { // it was removed since it was listed
				continue
			}
			if err != nil {
				return err
			}
		}
		if err := addFile(a, info.Name, f, buffer[:]); err != nil {
			return fmt.Errorf("%s: %w", info.Name, err)
		}
	}
	return a.Close()
}

// addFile writes a file, and closes its body.
func addFile(a archive, name string, f *job.File, buffer []byte) error {
	defer f.Body.Close()
	to, err := a.add(strings.ReplaceAll(name, `\`, "_"), f) // which is a separator elsewhere
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{to}, onlyReader{f.Body}, buffer)
	if err == nil && n != f.Size {
		err = fmt.Errorf("%w: the file ended after %d of %d bytes", io.ErrUnexpectedEOF, n, f.Size)
	}
	return err
}

// onlyWriter and onlyReader have io.CopyBuffer use its buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

type zipArchive struct{ *zip.Writer }

func (z zipArchive) add(name string, f *job.File) (io.Writer, error) {
	return z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: f.Modified})
}

type tarArchive struct{ *tar.Writer }

func (t tarArchive) add(name string, f *job.File) (io.Writer, error) {
	return t.Writer, t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: f.Size, Mode: 0o644, ModTime: f.Modified.Truncate(time.Second)})
}

// steadyWriter gives the client a time to take each piece, and remembers that it did
// not.
type steadyWriter struct {
	to      io.Writer
	control *http.ResponseController
	err     error
}

func (w *steadyWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(stall)) // not every writer has deadlines
	n, err := w.to.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}
