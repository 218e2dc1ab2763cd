package s3

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

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
		text: fmt.Sprintf("the server at %s (%s, %q) is not an S3 storage: check storage.url, and that its port is that of the S3 API and not of a console or another web server",
			a.url, answer.Status, answer.Header.Get("Content-Type")),
		class: errdefs.ErrUnavailable, cause: errdefs.ErrUnavailable, again: true, unsure: true, // a proxy may have a page for a while
	}
}

// foreign reports whether no S3 server answers a request so: with a page instead of what
// was stored or of the reason why not, or with a listing that is not XML. Only the body
// counts: servers that are made with a web framework call what they send text/html, also
// an empty answer.
func foreign(r *http.Request, answer *http.Response) bool {
	status := answer.StatusCode
	if status/100 != 2 && status != http.StatusNotFound && status != http.StatusForbidden {
		return false
	}
	if r.URL.Query().Has("list-type") {
		start := begin(answer)
		return len(start) > 0 && (start[0] != '<' || isPage(start))
	}
	// A stored page has an ETag; a proxy may forbid single requests.
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	return kind == "text/html" && answer.Header.Get("ETag") == "" && status != http.StatusForbidden && isPage(begin(answer))
}

// isPage reports whether a body that begins so is an HTML page.
func isPage(start []byte) bool {
	text := strings.ToLower(string(start))
	return strings.HasPrefix(text, "<!doctype html") || strings.HasPrefix(text, "<html")
}

// begin returns how the body of an answer begins, without a byte order mark and white space,
// and leaves the body as it is. It is empty if there is no body, or an error in the place of
// one, which is left to the reader.
func begin(answer *http.Response) []byte {
	const enough = 64
	body := bufio.NewReader(answer.Body)
	answer.Body = struct {
		io.Reader
		io.Closer
	}{body, answer.Body}
	start, _ := body.Peek(enough)
	return bytes.TrimLeft(bytes.TrimPrefix(start, []byte("\xef\xbb\xbf")), " \t\r\n")
}
