package s3_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

// TestPresign fetches files without credentials, by their addresses alone, from the
// embedded server and from MinIO.
func TestPresign(t *testing.T) {
	for _, bucket := range []string{"", "shared"} {
		for name, harness := range map[string]func(*testing.T) storagetest.Harness{"embedded": embeddedHarness(bucket), "minio": minioHarness(bucket)} {
			t.Run(name+" "+bucket, func(t *testing.T) {
				t.Parallel()
				testPresign(t, harness(t), bucket)
			})
		}
	}
}

func testPresign(t *testing.T, h storagetest.Harness, bucket string) {
	store := h.Open(t, h.URL, h.AccessKey, h.SecretKey)
	signer, err := s3.NewPresigner(s3.Config{URL: h.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	id := job.ID("presigned")
	if err := store.Init(t.Context(), id, []byte("in")); err != nil {
		t.Fatal(err)
	}
	const name, content = "outputs/a b/ü?&#+.txt", "what came out"
	if err := store.Put(t.Context(), id, name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	fetch := func(address string) (int, string) {
		t.Helper()
		response, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	address, err := signer.Presign(t.Context(), id, name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := fetch(address); status != 200 || body != content {
		t.Errorf("%s: %d %s", address, status, body)
	}
	if strings.Contains(address, h.SecretKey) {
		t.Errorf("the address %s holds the secret key", address)
	}
	if status, _ := fetch(strings.Replace(address, "outputs/", "inputs/", 1)); status != 403 {
		t.Errorf("another file by the address of this one: %d", status)
	}
	if _, err := signer.Presign(t.Context(), id, "../x", time.Hour); err == nil {
		t.Error("a name that no file has got an address")
	}
	if _, err := signer.Presign(t.Context(), id, name, 30*24*time.Hour); err == nil {
		t.Error("an address for a month was made")
	}
}

func TestNewPresigner(t *testing.T) {
	for _, c := range []s3.Config{{URL: "ftp://x", AccessKey: "a", SecretKey: "b"}, {URL: "http://x"}, {URL: "http://x", AccessKey: "a", SecretKey: "b", Bucket: "A"}} {
		if _, err := s3.NewPresigner(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
