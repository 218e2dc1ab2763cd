package registry_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func digestOf(t testing.TB, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// checkPull pulls all of an image and checks every byte against its digests.
func checkPull(t *testing.T, s *httptest.Server, image, digest string) {
	t.Helper()
	img, err := remote.Image(ref(t, s, image), remote.WithTransport(s.Client().Transport))
	if err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("%s: %v", image, err)
	}
	if got := digestOf(t, img); got != digest {
		t.Errorf("%s is %s, expected %s", image, got, digest)
	}
}

func TestImagesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s, stop := serve(t, dir)
	img := randomImage(t, 100_000, 3)
	push(t, s, "team/sub-team/model:v1", img)
	push(t, s, "plain:v1", img)
	push(t, s, "plain:v1", randomImage(t, 10, 1)) // the tag moves, the digest stays
	moved := randomImage(t, 1000, 1)
	push(t, s, "plain:v1", moved)
	for range 2 {
		checkPull(t, s, "team/sub-team/model:v1", digestOf(t, img))
		checkPull(t, s, "plain:v1", digestOf(t, moved))
		checkPull(t, s, "plain@"+digestOf(t, img), digestOf(t, img))
		stop()
		s, stop = serve(t, dir)
	}
	uploads, err := os.ReadDir(filepath.Join(dir, "uploads"))
	if err != nil || len(uploads) != 0 {
		t.Errorf("uploads left: %v, %v", uploads, err)
	}
}

func TestIndex(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	index, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	options := remote.WithTransport(s.Client().Transport)
	if err := remote.WriteIndex(ref(t, s, "many:v1"), index, options); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref(t, s, "many:v1"), options)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	if digestOf(t, got) != digestOf(t, index) {
		t.Errorf("the index is %s, expected %s", digestOf(t, got), digestOf(t, index))
	}
	// An index whose parts are not in this repository is refused.
	raw, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	resp, body := call(t, s, "PUT", "/v2/other/manifests/v1", string(raw), "Content-Type", "application/vnd.oci.image.index.v1+json")
	if resp.StatusCode != 404 || !strings.Contains(body, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("an index without its manifests: %s %s", resp.Status, body)
	}
}

// Two images that share layers, pushed at the same time by many clients.
func TestConcurrentPushes(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	shared := []v1.Image{randomImage(t, 50_000, 2), randomImage(t, 50_000, 2)}
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			image := fmt.Sprintf("team/model%d:v%d", i%3, i)
			if err := remote.Write(ref(t, s, image), shared[i%2], remote.WithTransport(s.Client().Transport)); err != nil {
				t.Errorf("push %s: %v", image, err)
			}
		})
	}
	clients.Wait()
	for i := range 8 {
		checkPull(t, s, fmt.Sprintf("team/model%d:v%d", i%3, i), digestOf(t, shared[i%2]))
	}
}

func TestLists(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	img := randomImage(t, 10, 1)
	for _, image := range []string{"b:v2", "b:v10", "b:v1", "a/b:x", "a:x"} {
		push(t, s, image, img)
	}
	options := remote.WithTransport(s.Client().Transport)
	reg, err := name.NewRegistry(strings.TrimPrefix(s.URL, "http://"), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	for _, pageSize := range []int{1, 2, 100} {
		repositories, err := remote.Catalog(t.Context(), reg, options, remote.WithPageSize(pageSize))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"a", "a/b", "b"}; !slices.Equal(repositories, want) {
			t.Errorf("in pages of %d: repositories %v, expected %v", pageSize, repositories, want)
		}
		tags, err := remote.List(reg.Repo("b"), options, remote.WithPageSize(pageSize))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"v1", "v10", "v2"}; !slices.Equal(tags, want) {
			t.Errorf("in pages of %d: tags %v, expected %v", pageSize, tags, want)
		}
	}
}

func TestRanges(t *testing.T) {
	s, _ := serve(t, t.TempDir())
	blob := strings.Repeat("0123456789", 1000)
	path := "/v2/a/blobs/" + putBlob(t, s, blob)
	for _, test := range []struct{ header, body, contentRange string }{
		{"", blob, ""},
		{"bytes=5-9", "56789", "bytes 5-9/10000"},
		{"bytes=9998-", "89", "bytes 9998-9999/10000"}, // as a pull that broke off goes on
		{"bytes=-3", "789", "bytes 9997-9999/10000"},
	} {
		resp, body := call(t, s, "GET", path, "", "Range", test.header)
		if body != test.body || resp.Header.Get("Content-Range") != test.contentRange {
			t.Errorf("range %q: %s, Content-Range %q, %d bytes", test.header, resp.Status, resp.Header.Get("Content-Range"), len(body))
		}
	}
	if resp, _ := call(t, s, "GET", path, "", "Range", "bytes=10000-"); resp.StatusCode != 416 {
		t.Errorf("a range beyond the end: %s", resp.Status)
	}
	if resp, body := call(t, s, "HEAD", path, ""); resp.StatusCode != 200 || resp.ContentLength != 10000 || body != "" {
		t.Errorf("HEAD: %s, %d bytes announced, %d sent", resp.Status, resp.ContentLength, len(body))
	}
}

// What a request that failed says is in the form clients know.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	s, _ := serve(t, dir)
	config := putBlob(t, s, "{}")
	absent := "sha256:" + strings.Repeat("0", 64)
	image := func(config string) string {
		return `{"schemaVersion":2,"config":{"digest":"` + config + `"},"layers":[]}`
	}
	const oci = "application/vnd.oci.image.manifest.v1+json"
	for _, test := range []struct {
		method, path, body, contentType string
		status                          int
		code                            string
	}{
		{"GET", "/", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/UPPER/manifests/v1", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/a//b/manifests/v1", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/../../etc/manifests/passwd", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/%2e%2e/%2e%2e/manifests/v1", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/a/_manifests/manifests/v1", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/manifests/v1", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/a/manifests/v1", "", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/..", "", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/" + absent, "", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/" + config, "", "", 404, "MANIFEST_UNKNOWN"}, // a blob, no manifest
		{"GET", "/v2/a/blobs/" + absent, "", "", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/blobs/sha256:..%2F..%2Fetc", "", "", 404, "NAME_INVALID"},
		{"GET", "/v2/a/blobs/sha256:12", "", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", "", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/tags/list", "", "", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/_catalog?n=-1", "", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/_catalog?n=x", "", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"DELETE", "/v2/a/manifests/v1", "", "", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/a/blobs/" + config, "", "", 405, "UNSUPPORTED"},
		{"POST", "/v2/", "", "", 405, "UNSUPPORTED"},
		{"GET", "/v2/a/referrers/" + absent, "", "", 404, "NAME_INVALID"},
		{"PUT", "/v2/a/manifests/-bad", image(config), oci, 400, "TAG_INVALID"},
		{"PUT", "/v2/a/manifests/" + strings.Repeat("t", 129), image(config), oci, 400, "TAG_INVALID"},
		{"PUT", "/v2/a/manifests/v1", "not JSON", oci, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/a/manifests/v1", `{"schemaVersion":1}`, oci, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/a/manifests/v1", image(config), ";;", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/a/manifests/v1", `{"schemaVersion":2,"mediaType":"a/b"}`, oci, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/a/manifests/v1", image(absent), oci, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/a/manifests/v1", image("sha256:../../x"), oci, 400, "DIGEST_INVALID"},
		{"PUT", "/v2/a/manifests/" + absent, image(config), oci, 400, "DIGEST_INVALID"},
		{"PUT", "/v2/a/manifests/v1", strings.Repeat(" ", 4<<20+1), oci, 413, "MANIFEST_INVALID"},
		{"POST", "/v2/a/blobs/uploads/?digest=" + absent, "x", "", 400, "DIGEST_INVALID"},
		{"POST", "/v2/a/blobs/uploads/?mount=nonsense", "", "", 400, "DIGEST_INVALID"},
		{"PATCH", "/v2/a/blobs/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA", "x", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PUT", "/v2/a/blobs/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA?digest=" + absent, "x", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"GET", "/v2/a/blobs/uploads/..", "", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"GET", "/v2/a/blobs/uploads/file-1", "", "", 404, "BLOB_UPLOAD_UNKNOWN"},
	} {
		resp, body := call(t, s, test.method, test.path, test.body, "Content-Type", test.contentType)
		if resp.StatusCode != test.status || !strings.HasPrefix(body, `{"errors":[{"code":"`+test.code+`","message":"`) {
			t.Errorf("%s %.80s: %s %.200s; expected %d %s", test.method, test.path, resp.Status, body, test.status, test.code)
		}
	}
	if resp, body := call(t, s, "GET", "/v2/_catalog", ""); body != `{"repositories":[]}` {
		t.Errorf("after that: %s %s", resp.Status, body)
	}
	if uploads, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(uploads) != 0 {
		t.Errorf("uploads left: %v, %v", uploads, err)
	}
}
