package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func sha(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// putBlob uploads a blob in one request.
func putBlob(t *testing.T, s *httptest.Server, content string) (digest string) {
	t.Helper()
	digest = sha(content)
	resp, body := call(t, s, "POST", "/v2/a/blobs/uploads/?digest="+digest, content)
	if resp.StatusCode != 201 || resp.Header.Get("Location") != "/v2/a/blobs/"+digest {
		t.Fatalf("upload in one request: %s %s", resp.Status, body)
	}
	return digest
}

// start begins an upload and returns its path.
func start(t *testing.T, s *httptest.Server) string {
	t.Helper()
	resp, body := call(t, s, "POST", "/v2/a/blobs/uploads/", "")
	if resp.StatusCode != 202 {
		t.Fatalf("start an upload: %s %s", resp.Status, body)
	}
	return resp.Header.Get("Location")
}

func TestChunks(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	upload := start(t, s)
	for _, step := range []struct {
		method, body, contentRange string
		status                     int
		held                       string // the Range of the answer
	}{
		{"GET", "", "", 204, "0-0"},
		{"PATCH", "hello", "0-4", 202, "0-4"},
		{"PATCH", "hello", "0-4", 416, ""}, // sent again after a lost answer
		{"PATCH", " old", "9-12", 416, ""}, // a gap
		{"PATCH", " old", "5-99", 400, ""}, // not the body's length
		{"PATCH", " old", "x", 400, ""},    // not a range
		{"GET", "", "", 204, "0-4"},        // where to go on
		{"PATCH", " wor", "5-8", 202, "0-8"},
		{"PATCH", "l", "", 202, "0-9"}, // without a range: at the end
		{"POST", "", "", 405, ""},
	} {
		resp, body := call(t, s, step.method, upload, step.body, "Content-Range", step.contentRange)
		if resp.StatusCode != step.status || step.held != "" && resp.Header.Get("Range") != step.held {
			t.Errorf("%s %q at %q: %s, Range %q, %s; expected %d, %q", step.method, step.body, step.contentRange,
				resp.Status, resp.Header.Get("Range"), body, step.status, step.held)
		}
	}
	digest := sha("hello world")
	if resp, body := call(t, s, "PUT", upload+"?digest="+digest, "d"); resp.StatusCode != 201 {
		t.Errorf("finish: %s %s", resp.Status, body)
	}
	if resp, body := call(t, s, "GET", "/v2/any/blobs/"+digest, ""); body != "hello world" {
		t.Errorf("the blob: %s %q", resp.Status, body)
	}
	if resp, _ := call(t, s, "GET", upload, ""); resp.StatusCode != 404 {
		t.Errorf("the upload, finished: %s", resp.Status)
	}
}

func TestUploadOfSomethingElse(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	upload := start(t, s)
	digest := sha("what was meant")
	if resp, body := call(t, s, "PUT", upload+"?digest="+digest, "what came"); resp.StatusCode != 400 || !strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("finish: %s %s", resp.Status, body)
	}
	for _, path := range []string{upload, "/v2/a/blobs/" + digest, "/v2/a/blobs/" + sha("what came")} {
		if resp, _ := call(t, s, "GET", path, ""); resp.StatusCode != 404 {
			t.Errorf("%s afterwards: %s", path, resp.Status)
		}
	}
}

func TestGiveUpAnUpload(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	upload := start(t, s)
	for _, status := range []int{204, 404} {
		if resp, _ := call(t, s, "DELETE", upload, ""); resp.StatusCode != status {
			t.Errorf("give up: %s, expected %d", resp.Status, status)
		}
	}
}

func TestMount(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	digest := putBlob(t, s, "shared")
	resp, _ := call(t, s, "POST", "/v2/b/blobs/uploads/?from=a&mount="+digest, "")
	if resp.StatusCode != 201 || resp.Header.Get("Location") != "/v2/b/blobs/"+digest {
		t.Errorf("mount what is there: %s, %s", resp.Status, resp.Header.Get("Location"))
	}
	resp, _ = call(t, s, "POST", "/v2/b/blobs/uploads/?from=a&mount="+sha("absent"), "")
	if resp.StatusCode != 202 || !strings.HasPrefix(resp.Header.Get("Location"), "/v2/b/blobs/uploads/") {
		t.Errorf("mount what is not there: %s, %s; expected an upload", resp.Status, resp.Header.Get("Location"))
	}
}

// While one request adds to an upload, no other may: it is told so and changes
// nothing.
func TestTwoRequestsForOneUpload(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	upload := start(t, s)
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", s.URL+upload, body)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		resp, err := s.Client().Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		answered <- err
	}()
	if _, err := io.WriteString(feed, "first"); err != nil { // it is being served
		t.Fatal(err)
	}
	var conflict bool
	for began := time.Now(); time.Since(began) < time.Minute; { // the bytes may be on their way to the handler still
		resp, _ := call(t, s, "GET", upload, "")
		if conflict = resp.StatusCode == http.StatusConflict; conflict {
			break
		}
	}
	if !conflict {
		t.Error("a second request was let in")
	}
	feed.Close()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if resp, _ := call(t, s, "PUT", upload+"?digest="+sha("first"), ""); resp.StatusCode != 201 {
		t.Errorf("finish: %s", resp.Status)
	}
}
