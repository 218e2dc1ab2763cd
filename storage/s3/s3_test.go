package s3_test

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBucketPerJob(t *testing.T) {
	claims.Hold(t, "M5")
	t.Parallel()
	storagetest.Run(t, minioHarness(""))
}

func TestPrefixPerJob(t *testing.T) {
	claims.Hold(t, "M5")
	t.Parallel()
	storagetest.Run(t, minioHarness("shared"))
}

func TestEmbeddedBucketPerJob(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, embeddedHarness(""))
}

func TestEmbeddedPrefixPerJob(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, embeddedHarness("shared"))
}

func TestInProcessBucketPerJob(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, inProcessHarness(""))
}

func TestInProcessPrefixPerJob(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, inProcessHarness("shared"))
}

// inProcessHarness is the daemon's own way into its server's folder. What the
// suite asks of other servers and keys stays with the client.
func inProcessHarness(bucket string) func(*testing.T) storagetest.Harness {
	return func(t *testing.T) storagetest.Harness {
		h, server := startEmbedded(t, bucket)
		store, err := server.Store(bucket, nil)
		if err != nil {
			t.Fatal(err)
		}
		client := h.Open
		h.Alone = true
		h.Open = func(t testing.TB, url, accessKey, secretKey string) storage.Store {
			if url == h.URL && accessKey == h.AccessKey && secretKey == h.SecretKey {
				return store
			}
			return client(t, url, accessKey, secretKey)
		}
		return h
	}
}

// embeddedHarness is the daemon's own server.
func embeddedHarness(bucket string) func(*testing.T) storagetest.Harness {
	return func(t *testing.T) storagetest.Harness {
		h, _ := startEmbedded(t, bucket)
		return h
	}
}

// startEmbedded starts the daemon's own server, with the shared bucket made.
func startEmbedded(t testing.TB, bucket string) (storagetest.Harness, *embedded.Server) {
	t.Helper()
	const access, secret = "access-key", "secret-key"
	server, err := embedded.Open(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", AccessKey: access, SecretKey: secret, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background()) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	h := storagetest.Harness{
		URL: "http://" + server.Addr(), AccessKey: access, SecretKey: secret, Bucket: bucket,
	}
	h.Open = opener(h)
	h.Signer = signer(t, h)
	if bucket != "" {
		store := open(t, s3.Config{URL: h.URL, AccessKey: access, SecretKey: secret, Bucket: bucket})
		for range 2 { // there already is as good
			if err := store.MakeBucket(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return h, server
}

func minioHarness(bucket string) func(*testing.T) storagetest.Harness {
	return func(t *testing.T) storagetest.Harness {
		server := testenv.StartMinIO(t)
		if bucket != "" {
			makeBucket(t, server, bucket)
		}
		h := storagetest.Harness{
			URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey, Bucket: bucket,
		}
		h.Open = opener(h)
		h.Signer = signer(t, h)
		return h
	}
}

// opener opens Stores for the harness. Only with another server is there little patience:
// requests to it fail for good, and those to the harness's do not because it is slow.
func opener(h storagetest.Harness) func(testing.TB, string, string, string) storage.Store {
	return func(t testing.TB, url, accessKey, secretKey string) storage.Store {
		patience := time.Minute
		if url != h.URL {
			patience = time.Second
		}
		return open(t, s3.Config{URL: url, AccessKey: accessKey, SecretKey: secretKey, Bucket: h.Bucket, Patience: patience})
	}
}

// signer makes addresses of files of the harness's server.
func signer(t testing.TB, h storagetest.Harness) *s3.Presigner {
	t.Helper()
	signer, err := s3.NewPresigner(s3.Config{URL: h.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Bucket: h.Bucket})
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func open(t testing.TB, config s3.Config) *s3.Store {
	t.Helper()
	store, err := s3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// openRoot opens a working directory as the daemon hands it to a Store.
func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// client is a plain S3 client, as a job's client has it.
func client(t testing.TB, url, accessKey, secretKey string) *minio.Client {
	t.Helper()
	client, err := minio.New(url[len("http://"):], &minio.Options{
		Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func makeBucket(t testing.TB, server *testenv.MinIO, bucket string) {
	t.Helper()
	if err := client(t, server.URL, server.AccessKey, server.SecretKey).MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
}
