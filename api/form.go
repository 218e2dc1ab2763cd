package api

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// The parts of a form that are no files.
const (
	descriptionPart = "job"
	archivePart     = "archive"
)

// maxDescription bounds the description of a job that comes with files, in bytes.
const maxDescription = 1 << 20

// noFiles yields no file.
func noFiles() (string, io.Reader, error) { return "", nil, io.EOF }

// form is a multipart request with a job's description and its files.
type form struct {
	description []byte

	parts    *multipart.Reader
	body     *formBody
	unpacked *bytesLeft  // that files may still take
	tars     *bytesLeft  // that the archives may still take, unzipped
	archive  *tar.Reader // that is being read; nil for none
	dirs     int         // of the archives
}

// formLimits bounds the forms that bring a job's inputs.
type formLimits struct {
	maxUpload   int64         // bytes of one, also unpacked
	uploadStall time.Duration // for which one may bring nothing
}

// openForm reads a form as far as the job's description, its first part.
func (s formLimits) openForm(w http.ResponseWriter, r *http.Request) (*form, error) {
	if r.ContentLength > s.maxUpload {
		return nil, &http.MaxBytesError{Limit: s.maxUpload}
	}
	if err := checkCoding(r); err != nil {
		return nil, err
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || params["boundary"] == "" {
		return nil, &job.Invalid{Field: "body", Problem: "the Content-Type of a form must name its boundary"}
	}
	control := http.NewResponseController(w)
	if wrapped, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		w = wrapped.Unwrap() // net/http looks for its own, to close the connection of a body too large
	}
	unbounded(w)
	f := &form{
		body: &formBody{from: http.MaxBytesReader(w, r.Body, s.maxUpload), progress: func() {
			_ = control.SetReadDeadline(time.Now().Add(s.uploadStall)) // not every writer has deadlines
		}},
		unpacked: &bytesLeft{limit: s.maxUpload, left: s.maxUpload},
		tars:     &bytesLeft{limit: s.maxUpload, left: s.maxUpload},
	}
	f.parts = multipart.NewReader(f.body, params["boundary"])
	part, err := f.parts.NextPart()
	if errors.Is(err, io.EOF) || err == nil && part.FormName() != descriptionPart {
		return nil, &job.Invalid{Field: descriptionPart, Problem: "the first part of a form must be the job's description, and be named job"}
	}
	if err != nil {
		return nil, f.failure(err)
	}
	f.description, err = io.ReadAll(io.LimitReader(part, maxDescription+1))
	if err != nil {
		return nil, f.failure(err)
	}
	if len(f.description) > maxDescription {
		return nil, &job.Invalid{Field: descriptionPart, Problem: fmt.Sprintf("the description has more than %d bytes; send inputs as files", maxDescription)}
	}
	return f, nil
}

// next is a job.Files.
func (f *form) next() (name string, content io.Reader, err error) {
	for {
		if f.archive != nil {
			name, err := f.nextOfArchive()
			if err == nil {
				return name, &formReader{f, f.unpacked.of(f.archive)}, nil
			}
			if !errors.Is(err, io.EOF) {
				return "", nil, err
			}
			f.archive = nil
		}
		part, err := f.parts.NextPart()
		if errors.Is(err, io.EOF) {
			return "", nil, io.EOF
		}
		if err != nil {
			return "", nil, f.failure(err)
		}
		_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil {
			return "", nil, &job.Invalid{Field: "body", Problem: "a part of the form has no valid Content-Disposition"}
		}
		content := bufio.NewReader(part)
		// A browser sends a file input in which no file was chosen as an empty file whose
		// filename is empty.
		if filename, isFile := params["filename"]; isFile && filename == "" {
			if _, err := content.Peek(1); errors.Is(err, io.EOF) {
				continue
			}
		}
		if part.FormName() == archivePart {
			if f.archive, err = f.openArchive(content); err != nil {
				return "", nil, f.failure(err)
			}
			continue
		}
		name, err = partName(params)
		if err != nil {
			return "", nil, err
		}
		return name, &formReader{f, f.unpacked.of(content)}, nil
	}
}

// partName is the name of a part's file: its filename, with directories, which
// multipart.Part leaves out, or its own name. It takes the parameters of the part's
// Content-Disposition.
func partName(params map[string]string) (string, error) {
	if name := params["filename"]; name != "" {
		return strings.TrimPrefix(name, "./"), nil
	}
	switch name := params["name"]; name {
	case "":
		return "", &job.Invalid{Field: "inputs", Problem: "a part of the form has neither a filename nor a name"}
	case descriptionPart:
		return "", &job.Invalid{Field: descriptionPart, Problem: "the job is described twice"}
	default:
		return name, nil
	}
}

// openArchive reads a tar file, gzipped or not. The size of the files in it does not bound
// what is to be read: it may have any number of headers without a file.
func (f *form) openArchive(buffered *bufio.Reader) (*tar.Reader, error) {
	begin, err := buffered.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(begin) != "\x1f\x8b" {
		return tar.NewReader(buffered), nil
	}
	unzipped, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, err
	}
	return tar.NewReader(f.tars.of(unzipped)), nil
}

// nextOfArchive is the name of the archive's next file, or io.EOF.
func (f *form) nextOfArchive() (string, error) {
	for {
		header, err := f.archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			return "", io.EOF
		case err != nil:
			return "", f.archiveFailure(err)
		}
		switch header.Typeflag {
		case tar.TypeReg:
			return strings.TrimPrefix(header.Name, "./"), nil
		case tar.TypeDir, tar.TypeXGlobalHeader:
			if f.dirs++; f.dirs > job.MaxInputs {
				return "", &job.Invalid{Field: archivePart, Problem: fmt.Sprintf("has more than %d directories; pack the files without them, or all into one file", job.MaxInputs)}
			}
		default:
			return "", &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("%q in the archive is neither a file nor a directory; tar --dereference packs what links lead to", bounded(header.Name))}
		}
	}
}

// failure is why a form cannot be read: the body's own error, or what is wrong with
// its form.
func (f *form) failure(err error) error {
	if f.body.err != nil {
		return f.body.err
	}
	if _, invalid := asError[*job.Invalid](err); invalid {
		return err
	}
	return &job.Invalid{Field: "body", Problem: "is not a valid form: " + bounded(err.Error())}
}

func (f *form) archiveFailure(err error) error {
	if f.body.err != nil {
		return f.body.err
	}
	if _, tooLarge := asError[*http.MaxBytesError](err); tooLarge {
		return err
	}
	return &job.Invalid{Field: archivePart, Problem: "is not a valid tar file: " + bounded(err.Error())}
}

// formReader is the content of one file of a form.
type formReader struct {
	form *form
	from io.Reader
}

func (r *formReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	if _, tooLarge := asError[*http.MaxBytesError](err); tooLarge {
		return n, err
	}
	if r.form.archive != nil {
		return n, r.form.archiveFailure(err)
	}
	return n, r.form.failure(err)
}

// formBody is the body of a form. It keeps its error for the answer to the client: the
// parser of the body may wrap or replace it.
type formBody struct {
	from     io.Reader
	progress func() // called before each read
	err      error
}

func (b *formBody) Read(p []byte) (int, error) {
	b.progress()
	n, err := b.from.Read(p)
	switch _, tooLarge := asError[*http.MaxBytesError](err); {
	case err == nil, errors.Is(err, io.EOF):
	case tooLarge:
		b.err = err
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = errSlowBody
	default:
		b.err = &job.Invalid{Field: "body", Problem: "ended before it was complete"}
	}
	return n, err
}

// bytesLeft bounds what files take when they are unpacked, all together.
type bytesLeft struct{ limit, left int64 }

func (b *bytesLeft) of(from io.Reader) io.Reader { return &limitedReader{b, from} }

type limitedReader struct {
	of   *bytesLeft
	from io.Reader
}

func (r *limitedReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if r.of.left -= int64(n); r.of.left < 0 {
		return 0, &http.MaxBytesError{Limit: r.of.limit}
	}
	return n, err
}
