package embedded

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"

	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const (
	testAccessKey = "access"
	testSecretKey = "secret"
)

func newTestHandler(t testing.TB) *handler {
	t.Helper()
	store, err := folder.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return newHandler(store, Config{AccessKey: testAccessKey, SecretKey: testSecretKey, Log: slog.New(slog.DiscardHandler)})
}

func signedRequest(t testing.TB, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(hashHeader, unsignedPayload)
	return signer.SignV4(*r, testAccessKey, testSecretKey, "", "us-east-1")
}

// answer is a ResponseWriter that keeps the status only.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkHandler is a request's way without sockets: on a tmpfs (TMPDIR) it
// is the CPU time that the server needs besides those and fsync.
func BenchmarkHandler(b *testing.B) {
	f := newTestHandler(b)
	if err := f.store.CreateBucket("small"); err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 1024)
	for _, method := range []string{"PUT", "GET", "HEAD"} {
		b.Run(method, func(b *testing.B) {
			signed := signedRequest(b, method, "http://127.0.0.1/small/inputs/input")
			b.ReportAllocs()
			for b.Loop() {
				r := signed.Clone(b.Context())
				if method == "PUT" {
					r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
					r.Header.Set("Content-Length", "1024")
				}
				a := &answer{header: http.Header{}}
				if f.ServeHTTP(a, r); a.status != http.StatusOK {
					b.Fatal(a.status)
				}
			}
		})
	}
}

// TestParseQuery reads queries as they are signed: "&" alone separates.
func TestParseQuery(t *testing.T) {
	for raw, want := range map[string]params{
		"prefix=a;b&x":    {{"prefix", "a;b"}, {"x", ""}},
		"annotation;":     {{"annotation;", ""}},
		"a=1+2%2B3&&a==4": {{"a", "1 2+3"}, {"a", "=4"}},
	} {
		if got, ok := parseQuery(raw); !ok || !slices.Equal(got, want) {
			t.Errorf("%q is read as %q", raw, got)
		}
	}
	if _, ok := parseQuery("a=%zz"); ok {
		t.Error("a wrong escape passes")
	}
}
