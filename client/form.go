package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
)

// Form is the body of POST /jobs with files. It is written while it is read.
type Form struct {
	reader *io.PipeReader
	kind   string
	done   chan struct{}
}

// NewForm begins a form for a job. write adds its files, in a goroutine of its own;
// its error is that of the request. The caller, or the request that it is the body
// of, closes the form.
func NewForm(job JobRequest, write func(*FormWriter) error) *Form {
	reader, pipe := io.Pipe()
	w := multipart.NewWriter(pipe)
	f := &Form{reader: reader, kind: w.FormDataContentType(), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		pipe.CloseWithError(writeForm(w, job, write))
	}()
	return f
}

func writeForm(w *multipart.Writer, job JobRequest, write func(*FormWriter) error) error {
	part, err := w.CreateFormField("job")
	if err != nil {
		return err
	}
	if err := json.NewEncoder(part).Encode(job); err != nil {
		return fmt.Errorf("write the description of the job: %w", err)
	}
	if err := write(&FormWriter{w}); err != nil {
		return err
	}
	return w.Close()
}

// ContentType is what CreateJobWithBody is to be given.
func (f *Form) ContentType() string { return f.kind }

func (f *Form) Read(p []byte) (int, error) { return f.reader.Read(p) }

// Close ends the writing and waits for it.
func (f *Form) Close() error {
	_ = f.reader.Close() // never fails
	<-f.done
	return nil
}

// FormWriter adds files to a form.
type FormWriter struct{ to *multipart.Writer }

// File adds a file. Its name, with slashes, is that below inputs/.
func (w *FormWriter) File(name string, content io.Reader) error {
	header := textproto.MIMEHeader{}
	header.Set("Content-Disposition", `form-data; name="file"; filename="`+quoteName.Replace(name)+`"`)
	header.Set("Content-Type", "application/octet-stream")
	part, err := w.to.CreatePart(header)
	if err != nil {
		return err
	}
	_, err = io.Copy(part, content)
	return err
}

// quoteName escapes a file's name in a header; line breaks, which no input may have
// in its name, are written as browsers do.
var quoteName = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", "%0D", "\n", "%0A")

// Header is a request editor that sets a header.
func Header(name, value string) RequestEditorFn {
	return func(_ context.Context, r *http.Request) error {
		r.Header.Set(name, value)
		return nil
	}
}
