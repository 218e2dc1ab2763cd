package embedded_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/iterait/shepherd/storage/embedded"
)

func open(t *testing.T, dir, listen string) (*embedded.Server, error) {
	t.Helper()
	return embedded.Open(embedded.Config{Dir: dir, Listen: listen, AccessKey: accessKey, SecretKey: secretKey, Log: slog.New(slog.DiscardHandler)})
}

func TestOneProcessPerDirectory(t *testing.T) {
	dir := t.TempDir()
	first, err := open(t, dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = open(t, dir, "127.0.0.1:0")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second server on the same directory: %v", err)
	}
	if _, err := open(t, t.TempDir(), first.Addr()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a second server on the same address: %v", err)
	}
	for range 2 { // before Serve, and twice
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := open(t, dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- again.Serve(context.Background()) }()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve, closed: %v", err)
	}
	if err := again.Serve(context.Background()); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	if _, err := embedded.Open(embedded.Config{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("it opens without keys")
	}
}

// TestRequestsUnderWayFinish stops the server in the midst of an upload.
func TestRequestsUnderWayFinish(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	b := s.bucket(s.client(nil), "under-way")
	body, feed := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+s.addr+"/"+b+"/x", body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = 10
	r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	answered := make(chan *http.Response)
	go func() {
		answer, _ := s.send(signer.SignV4(*r, accessKey, secretKey, "", "us-east-1"))
		answered <- answer
	}()
	if _, err := feed.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload to arrive", func() bool {
		drafts, _ := filepath.Glob(filepath.Join(dir, "tmp", "*", "draft-*"))
		return len(drafts) == 1
	})
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	eventually(t, "the listener to close", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if _, err := feed.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if answer := <-answered; answer.StatusCode != 200 {
		t.Errorf("the upload under way got %s", answer.Status)
	}
	<-stopped
	s = start(t, dir)
	if got := get(t, s.client(nil), b, "x"); string(got) != "helloworld" {
		t.Errorf("stored: %q", got)
	}
}

func TestCutOffUploadLeavesNothing(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "cut-off")
	put(t, c, b, "x", []byte("before"))
	body, feed := io.Pipe()
	failed := make(chan error)
	go func() {
		_, err := c.PutObject(t.Context(), b, "x", body, 1<<20, minio.PutObjectOptions{DisableMultipart: true})
		failed <- err
	}()
	if _, err := feed.Write(random(1, 100_000)); err != nil {
		t.Fatal(err)
	}
	feed.CloseWithError(errors.New("cable pulled"))
	if err := <-failed; err == nil {
		t.Error("an upload cut short succeeded")
	}
	eventually(t, "the draft to go", func() bool {
		left, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*", "*"))
		return err == nil && len(left) == 0
	})
	if got := get(t, c, b, "x"); string(got) != "before" {
		t.Errorf("stored: %q", got)
	}
}

func TestCredentials(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "storage")
	var wg sync.WaitGroup
	got := make([][2]string, 8)
	for i := range got {
		wg.Go(func() {
			a, s, err := embedded.Credentials(dir)
			if err != nil {
				t.Error(err)
			}
			got[i] = [2]string{a, s}
		})
	}
	wg.Wait()
	for _, pair := range got {
		if pair != got[0] || len(pair[0]) < 16 || len(pair[1]) < 40 {
			t.Errorf("got %q and %q", got[0], pair)
		}
	}
	path := filepath.Join(dir, "credentials.json")
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left in the directory: %v, %v", files, err)
	}
	other, _, err := embedded.Credentials(t.TempDir())
	if err != nil || other == got[0][0] {
		t.Errorf("another directory has the same keys: %v", err)
	}
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := embedded.Credentials(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestGarbage(t *testing.T) {
	s := start(t, t.TempDir())
	c := s.client(nil)
	b := s.bucket(c, "sturdy")
	for i := range 200 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		text := random(uint64(i), 2000)
		if i%2 == 0 {
			text = append([]byte("PUT /sturdy/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nAuthorization: AWS4-HMAC-SHA256 "), text...)
		}
		_, _ = conn.Write(text)
		conn.Close()
	}
	for _, query := range []string{"uploadId=../../x", "uploadId=%00", "uploads&max-uploads=-1", "uploads&max-uploads=x", "max-keys=x", "continuation-token=%ff", "list-type=2&continuation-token=!", "versionId=x", "partNumber=0&uploadId=A", "partNumber=99999&uploadId=A", "part-number-marker=-5&uploadId=A", "encoding-type=x"} {
		for _, path := range []string{"/" + b, "/" + b + "/x", "/"} {
			for _, method := range []string{"GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"} {
				if path != "/"+b || method != "DELETE" {
					if answer, text := s.do(method, path, query, nil, []byte("<x>")); answer.StatusCode >= 500 && answer.StatusCode != 501 {
						t.Errorf("%s %s?%s: %s %s", method, path, query, answer.Status, text)
					}
				}
			}
		}
	}
	put(t, c, b, "x", []byte("still here"))
	if logs := s.logs.String(); strings.Contains(logs, "panic") {
		t.Errorf("logged:\n%s", logs)
	}
}
