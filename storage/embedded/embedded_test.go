package embedded_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/storage/embedded"
)

const (
	accessKey = "shepherd-test"
	secretKey = "correct horse/battery+staple"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		runVictim(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// server is a running server and what a test needs to talk to it.
type server struct {
	t      testing.TB
	dir    string
	addr   string
	server *embedded.Server
	stop   func()
	logs   *logs
}

// start serves dir until the test ends or stop is called.
func start(t testing.TB, dir string, change ...func(*embedded.Config)) *server {
	t.Helper()
	l := &logs{}
	c := embedded.Config{
		Dir: dir, Listen: "127.0.0.1:0", AccessKey: accessKey, SecretKey: secretKey,
		Log: slog.New(slog.NewTextHandler(l, nil)),
	}
	for _, f := range change {
		f(&c)
	}
	s, err := embedded.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(stop)
	return &server{t: t, dir: dir, addr: s.Addr(), server: s, stop: stop, logs: l}
}

// client returns a minio-go client. change may be nil.
func (s *server) client(change func(*minio.Options)) *minio.Client {
	s.t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	s.t.Cleanup(transport.CloseIdleConnections)
	o := &minio.Options{
		Creds:     credentials.NewStaticV4(accessKey, secretKey, ""),
		Transport: transport, MaxRetries: 1,
	}
	if change != nil {
		change(o)
	}
	c, err := minio.New(s.addr, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// core is client for single S3 calls.
func (s *server) core() *minio.Core { return &minio.Core{Client: s.client(nil)} }

func (s *server) bucket(c *minio.Client, name string) string {
	s.t.Helper()
	if err := c.MakeBucket(s.t.Context(), name, minio.MakeBucketOptions{}); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// do sends one signed request as it is, which clients with opinions on keys and
// headers do not. The body is sent whole, with its SHA-256 signed.
func (s *server) do(method, path, query string, header http.Header, body []byte) (*http.Response, []byte) {
	s.t.Helper()
	u := &url.URL{Scheme: "http", Host: s.addr, Path: path, RawQuery: query}
	r := (&http.Request{Method: method, URL: u, Host: s.addr, Header: http.Header{}}).WithContext(s.t.Context())
	maps.Copy(r.Header, header)
	sum := sha256.Sum256(body)
	r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	r.Body, r.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return s.send(sign(r))
}

// sign signs a request with the test's keys.
func sign(r *http.Request) *http.Request {
	return signer.SignV4(*r, accessKey, secretKey, "", "us-east-1")
}

// send sends a request that is signed, or not, already.
func (s *server) send(r *http.Request) (*http.Response, []byte) {
	s.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer, text
}

// makeBuckets makes many buckets below a storage directory, without an fsync for
// each.
func makeBuckets(t testing.TB, dir string, n int) {
	t.Helper()
	for i := range n {
		if err := os.Mkdir(filepath.Join(dir, "buckets", fmt.Sprintf("job-%05d", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// wantAnswer fails the test unless an answer has this status, and code if not
// "".
func wantAnswer(t testing.TB, answer *http.Response, text []byte, status int, code string) {
	t.Helper()
	if answer.StatusCode != status || !bytes.Contains(text, []byte(code)) {
		t.Errorf("%s %s: got %s %.300s; want %d %s", answer.Request.Method, answer.Request.URL, answer.Status, text, status, code)
	}
}

func put(t testing.TB, c *minio.Client, bucket, key string, data []byte) minio.UploadInfo {
	t.Helper()
	info, err := c.PutObject(t.Context(), bucket, key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{})
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	return info
}

func get(t testing.TB, c *minio.Client, bucket, key string) []byte {
	t.Helper()
	o, err := c.GetObject(t.Context(), bucket, key, minio.GetObjectOptions{})
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return data
}

// wantCode fails the test unless err is the S3 error of this code.
func wantCode(t testing.TB, err error, status int, code string) {
	t.Helper()
	if got := minio.ToErrorResponse(err); got.Code != code || got.StatusCode != status {
		t.Errorf("got %v (status %d, code %q), want status %d, code %q", err, got.StatusCode, got.Code, status, code)
	}
}

// random returns n bytes that the seed determines.
func random(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// logs collects what the server logs.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// eventually waits for what happens in another goroutine or process.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
