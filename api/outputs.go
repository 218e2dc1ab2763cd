package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"path"
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

func (s *fileServer) listFiles(w http.ResponseWriter, r *http.Request, rawID, dir string, list func(context.Context, job.ID) iter.Seq2[job.FileInfo, error], presign *string) {
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
	var files []job.FileInfo
	count, bytes := 0, int64(0)
	for f, failed := range list(r.Context(), id) {
		if err = failed; err != nil {
			break
		}
		count++
		bytes += f.Size
		if count <= streamedFiles {
			files = append(files, f)
		}
	}
	address := func([]job.FileInfo) error { return nil }
	if valid > 0 {
		address = func(files []job.FileInfo) error { return s.service.Presign(r.Context(), id, dir, files, valid) }
		w.Header().Set("Cache-Control", "no-store") // addresses are as good as credentials
	}
	if err == nil {
		err = address(files)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if count > streamedFiles {
		unbounded(w)
		to := &steadyWriter{to: w, control: http.NewResponseController(w)}
		if err := streamFiles(w, to, list(r.Context(), id), bytes, address); err != nil {
			s.brokenOff(r, to, err)
		}
		_ = to.control.SetWriteDeadline(time.Time{})
		return
	}
	answer := FileList{Bytes: bytes, Files: make([]FileEntry, len(files))}
	for i, f := range files {
		answer.Files[i] = fileEntry(f)
	}
	s.answer(w, r, http.StatusOK, answer)
}

func fileEntry(f job.FileInfo) FileEntry {
	return FileEntry{Name: f.Name, Size: f.Size, Etag: orNull(f.ETag), ModifiedAt: job.FormatTime(f.Modified), Address: orNull(f.Address)}
}

// brokenOff ends an answer that was begun so that the client does not take a part for the
// whole, and logs why, unless the client is gone.
func (s *fileServer) brokenOff(r *http.Request, to *steadyWriter, err error) {
	if r.Context().Err() == nil && to.err == nil {
		s.log.ErrorContext(r.Context(), "answer broken off", "path", r.URL.Path, "request", requestID(r.Context()), "error", err)
	}
	panic(http.ErrAbortHandler)
}

// streamedFiles is how many files are listed at most in an answer that is made whole
// before it is sent.
const streamedFiles = 10_000

// streamFiles writes a FileList entry by entry, as the storage lists the files: that of a
// million would take hundreds of megabytes. It fails where their sizes do not add up to
// bytes, as when they were replaced since they were counted.
func streamFiles(w http.ResponseWriter, steady *steadyWriter, files iter.Seq2[job.FileInfo, error], bytes int64, address func([]job.FileInfo) error) error {
	h := w.Header()
	h.Set("Content-Type", jsonType)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	to := bufio.NewWriter(steady)
	fmt.Fprintf(to, `{"bytes": %d, "files": [`, bytes) // its error stays, and Flush returns it
	separator := ""
	for f, err := range files {
		one := []job.FileInfo{f}
		if err == nil {
			err = address(one)
		}
		if err != nil {
			return err
		}
		text, err := job.JSON(fileEntry(one[0]))
		if err != nil {
			return err
		}
		_, _ = to.WriteString(separator)
		if _, err := to.Write(text); err != nil {
			return err
		}
		separator = ", "
		bytes -= f.Size
	}
	if bytes != 0 {
		return errors.New("the files have changed since their sizes were added up")
	}
	_, _ = to.WriteString("]}")
	return to.Flush()
}

// GetOutputsZip answers GET /jobs/{job_id}/outputs.zip.
func (s *fileServer) GetOutputsZip(w http.ResponseWriter, r *http.Request, rawID string) {
	s.sendArchive(w, r, rawID, "zip", "application/zip", func(to io.Writer) archive { return newZip(to) })
}

// GetOutputsTar answers GET /jobs/{job_id}/outputs.tar.
func (s *fileServer) GetOutputsTar(w http.ResponseWriter, r *http.Request, rawID string) {
	s.sendArchive(w, r, rawID, "tar", "application/x-tar", func(to io.Writer) archive { return newTar(to) })
}

// sendArchive puts the files into an archive while the storage lists them. The first one
// is opened before the answer begins: until then an error is still an answer of its own.
func (s *fileServer) sendArchive(w http.ResponseWriter, r *http.Request, rawID, suffix, contentType string, begin func(io.Writer) archive) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx := r.Context()
	to := &steadyWriter{to: w, control: http.NewResponseController(w)}
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	var a archive
	start := func() {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", string(id)+"-outputs."+suffix))
		h.Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		unbounded(w)
		a = begin(to)
	}
	names := archiveNames{taken: func(name string) (bool, error) {
		f, err := s.service.Output(ctx, id, name, nil)
		if err != nil {
			return false, err
		}
		return true, f.Body.Close()
	}}
	for info, err := range s.service.Outputs(ctx, id) {
		var name string
		var f *job.File
		if err == nil && r.Method == http.MethodHead {
			break
		}
		if err == nil {
			name, err = names.of(info.Name)
		}
		if err == nil {
			f, err = s.service.Output(ctx, id, info.Name, nil)
		}
		if a == nil {
			if err != nil {
				s.fail(w, r, err)
				return
			}
			start()
		}
		if errors.Is(err, job.ErrNoFile) { // it was removed since it was listed
			continue
		}
		if err == nil {
			if err = addFile(a, name, f, buffer[:]); err != nil {
				err = fmt.Errorf("%s: %w", info.Name, err)
			}
		}
		if err != nil {
			s.brokenOff(r, to, err)
		}
	}
	if a == nil {
		start()
	}
	if r.Method == http.MethodHead {
		return
	}
	if err := a.Close(); err != nil {
		s.brokenOff(r, to, err)
	}
	_ = to.control.Flush()
	_ = to.control.SetWriteDeadline(time.Time{})
}

// archiveNames gives files their names in an archive, each another one.
type archiveNames struct {
	taken func(name string) (bool, error) // reports whether a file has the name
	given map[uint64]bool                 // hashes of names that were changed
}

// of is the name of a file in the archive: its own, without backslashes, which are separators
// on other systems. Where another file has that, part of a hash follows.
func (n *archiveNames) of(name string) (string, error) {
	if !strings.Contains(name, `\`) {
		return name, nil
	}
	changed := strings.ReplaceAll(name, `\`, "_")
	sum := sha256.Sum256([]byte(changed))
	hash := binary.LittleEndian.Uint64(sum[:])
	taken := n.given[hash]
	if !taken {
		var err error
		if taken, err = n.taken(changed); err != nil && !errors.Is(err, job.ErrNoFile) {
			return "", err
		}
	}
	if !taken {
		if n.given == nil {
			n.given = map[uint64]bool{}
		}
		n.given[hash] = true
		return changed, nil
	}
	sum = sha256.Sum256([]byte(name))
	suffix := path.Ext(changed)
	return fmt.Sprintf("%s~%x%s", strings.TrimSuffix(changed, suffix), sum[:8], suffix), nil
}

// addFile writes a file, and closes its body.
func addFile(a archive, name string, f *job.File, buffer []byte) error {
	defer f.Body.Close()
	to, err := a.add(name, f)
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
