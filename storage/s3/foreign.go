package s3

import (
	"bufio"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/containerd/errdefs"
)

// s3Answers is a transport that returns an error for answers that no S3 server gives. Web
// servers, and pages of proxies, would otherwise be taken for storage: MinIO's console
// answers every request, also one that stores a file, with 200 and its page, and a page is
// read as a listing of no files.
type s3Answers struct {
	next http.RoundTripper
	url  string // of the storage, for messages
}

func (a *s3Answers) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := a.next.RoundTrip(r)
	if err != nil || !foreign(r, answer) {
		return answer, err
	}
	_ = answer.Body.Close()
	return nil, &requestError{
		text: fmt.Sprintf("what answers at %s (%s, %q) is no S3 storage: check storage.url, and that its port is that of the S3 API and not of a console or another web server",
			a.url, answer.Status, answer.Header.Get("Content-Type")),
		class: errdefs.ErrUnavailable, cause: errdefs.ErrUnavailable, again: true, unsure: true, // a proxy may have a page for a while
	}
}

// foreign reports whether no S3 server answers a request so: with a page instead of what
// was stored or of the reason why not, or with a listing that is not XML.
func foreign(r *http.Request, answer *http.Response) bool {
	status := answer.StatusCode
	if status/100 != 2 && status != http.StatusNotFound && status != http.StatusForbidden {
		return false
	}
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	page := kind == "text/html"
	if r.URL.Query().Has("list-type") {
		return page || !beginsAsXML(answer)
	}
	// A stored page has an ETag; a proxy may forbid single requests.
	return page && answer.Header.Get("ETag") == "" && status != http.StatusForbidden
}

// beginsAsXML reports whether the body of an answer, if there is one, begins as XML does.
func beginsAsXML(answer *http.Response) bool {
	body := bufio.NewReader(answer.Body)
	answer.Body = struct {
		io.Reader
		io.Closer
	}{body, answer.Body}
	for {
		start, err := body.Peek(1)
		if err != nil {
			return true // whoever reads it meets the error
		}
		switch start[0] {
		case ' ', '\t', '\r', '\n':
			_, _ = body.Discard(1)
		default:
			return start[0] == '<' || start[0] == 0xef // which begins a byte order mark
		}
	}
}
