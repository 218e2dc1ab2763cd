package s3_test

import (
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBucketPerJob(t *testing.T) { storagetest.Run(t, minioHarness("")) }
func TestPrefixPerJob(t *testing.T) { storagetest.Run(t, minioHarness("shared")) }

func minioHarness(bucket string) func(*testing.T) storagetest.Harness {
	return func(t *testing.T) storagetest.Harness {
		server := testenv.StartMinIO(t)
		if bucket != "" {
			makeBucket(t, server, bucket)
		}
		return storagetest.Harness{
			URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey, Bucket: bucket,
			Open: func(t testing.TB, url, accessKey, secretKey string) storage.Store {
				return open(t, s3.Config{URL: url, AccessKey: accessKey, SecretKey: secretKey, Bucket: bucket, Patience: time.Second})
			},
		}
	}
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

// client is a plain S3 client, as a job's client has it.
func client(t testing.TB, server *testenv.MinIO) *minio.Client {
	t.Helper()
	client, err := minio.New(server.URL[len("http://"):], &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func makeBucket(t testing.TB, server *testenv.MinIO, bucket string) {
	t.Helper()
	if err := client(t, server).MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
}
