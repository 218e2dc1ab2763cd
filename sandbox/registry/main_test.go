package registry_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/sandbox/registry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// serve serves a folder until the returned function is called or the test ends.
func serve(t testing.TB, dir string) (*httptest.Server, func()) {
	t.Helper()
	r, err := registry.Open(registry.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return s, s.Close
}

// ref is an image's reference in a server's registry.
func ref(t testing.TB, s *httptest.Server, image string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func push(t testing.TB, s *httptest.Server, image string, img v1.Image) {
	t.Helper()
	if err := remote.Write(ref(t, s, image), img, remote.WithTransport(s.Client().Transport)); err != nil {
		t.Fatalf("push %s: %v", image, err)
	}
}

func randomImage(t testing.TB, size int64, layers int) v1.Image {
	t.Helper()
	img, err := random.Image(size, int64(layers))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// call makes a request and returns its answer with the whole body.
func call(t testing.TB, s *httptest.Server, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(answer)
}
