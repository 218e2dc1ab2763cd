package s3_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

// TestVersityGW runs the suite against another S3 server.
func TestVersityGW(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, gatewayHarness(testenv.StartVersityGW))
}

// TestRclone runs it against `rclone serve s3`.
func TestRclone(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, rcloneHarness)
}

func rcloneHarness(t *testing.T) storagetest.Harness {
	h := gatewayHarness(testenv.StartRcloneS3)(t)
	h.KeepsParts = true
	// It shows signs for control characters ("tab␉here") in the listing of a folder that it
	// reads from the disk, which it does for one that two requests create at a time.
	h.ChangesControls = true
	return h
}

// gatewayHarness is a server that keeps files as such, with a bucket per job.
func gatewayHarness(start func(testing.TB) (url, accessKey, secretKey string)) func(*testing.T) storagetest.Harness {
	return func(t *testing.T) storagetest.Harness {
		url, access, secret := start(t)
		h := storagetest.Harness{
			URL: url, AccessKey: access, SecretKey: secret, ShortNames: true, HidesUnknownKeys: true,
		}
		h.Open = opener(h)
		h.Signer = signer(t, h)
		return h
	}
}

// takeAway has a proxy's server lack features.
var takeAway = map[string]func(p *testenv.S3Proxy){
	"conditional PUT": func(p *testenv.S3Proxy) {
		p.Inject(testenv.NotImplemented, -1, func(r *http.Request) bool { return r.Method == "PUT" && r.Header.Get("If-None-Match") != "" })
	},
	"deletion of several files by one request": func(p *testenv.S3Proxy) {
		p.Inject(testenv.NotImplemented, -1, func(r *http.Request) bool { return r.Method == "POST" && r.URL.Query().Has("delete") })
	},
	"ETags of listings": func(p *testenv.S3Proxy) { p.OtherETags() },
	"listing of multipart uploads": func(p *testenv.S3Proxy) {
		p.Inject(testenv.NotImplemented, -1, func(r *http.Request) bool { return r.Method == "GET" && r.URL.Query().Has("uploads") })
	},
}

// TestLackingFeatures takes features away one by one: a job goes its whole way
// without each, and what is lacking is logged once.
func TestLackingFeatures(t *testing.T) {
	large := make([]byte, 33<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(large[:1<<20])
	for feature, take := range takeAway {
		for _, bucket := range []string{"", "shared"} {
			t.Run(feature+"/"+bucket, func(t *testing.T) {
				t.Parallel()
				h, _ := startEmbedded(t, bucket)
				proxy := testenv.StartS3Proxy(t, h.URL)
				take(proxy)
				var logs lockedBuffer
				store := open(t, s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Bucket: bucket, Log: slog.New(slog.NewTextHandler(&logs, nil))})
				for _, id := range []job.ID{"first-job", "second-job"} {
					fatal(t, store.Init(t.Context(), id, []byte("payload")))
					if err := store.Init(t.Context(), id, []byte("another")); !errors.Is(err, storage.ErrExists) {
						t.Errorf("a second Init: %v", err)
					}
					dir := t.TempDir()
					if _, err := store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{}); err != nil {
						t.Fatal(err)
					}
					if got, err := os.ReadFile(filepath.Join(dir, "inputs/input")); err != nil || string(got) != "payload" {
						t.Errorf("staged %q, %v", got, err)
					}
					fatal(t, os.WriteFile(filepath.Join(dir, "outputs/large"), large, 0o600))
					fatal(t, store.Put(t.Context(), id, "outputs/old", strings.NewReader("x"), 1))
					if _, err := store.Collect(t.Context(), id, openRoot(t, dir), true); err != nil {
						t.Fatal(err)
					}
					files, err := storagetest.All(store.List(t.Context(), id, "outputs/"))
					if err != nil || len(files) != 1 || files[0].Size != int64(len(large)) {
						t.Errorf("outputs %+v, %v", files, err)
					}
					fatal(t, store.Remove(t.Context(), id))
					if exists, err := store.Exists(t.Context(), id); exists || err != nil {
						t.Errorf("after Remove: %v, %v", exists, err)
					}
				}
				if n := strings.Count(logs.String(), "Storage lacks a feature"); n != 1 || !strings.Contains(logs.String(), feature) {
					t.Errorf("logged %d times:\n%s", n, logs.String())
				}
			})
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestResumedUpload breaks a large upload off; the next Collect, also of another
// daemon, sends only what is missing.
func TestResumedUpload(t *testing.T) {
	t.Parallel()
	h, _ := startEmbedded(t, "")
	proxy := testenv.StartS3Proxy(t, h.URL)
	config := s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Parallel: 1, Patience: time.Second}
	store := open(t, config)
	const id = job.ID("resumed")
	fatal(t, store.Init(t.Context(), id, nil))
	content := make([]byte, 100<<20) // four parts
	_, _ = rand.NewChaCha8([32]byte{4}).Read(content)
	dir := t.TempDir()
	fatal(t, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
	fatal(t, os.WriteFile(filepath.Join(dir, "outputs/large"), content, 0o600))
	proxy.Inject(testenv.Reset, -1, part("3"))
	if _, err := store.Collect(t.Context(), id, openRoot(t, dir), false); err == nil {
		t.Fatal("Collect succeeds without its third part")
	}
	proxy.Reset()
	if _, err := store.Collect(t.Context(), id, openRoot(t, dir), false); err == nil {
		t.Fatal("Collect succeeds without its third part")
	}
	if again := slices.ContainsFunc(proxy.Requests(), func(r string) bool { return strings.Contains(r, "partNumber=1") }); again {
		t.Error("what is stored is sent again because its rest does not arrive")
	}
	proxy.Heal()
	proxy.Reset()
	if _, err := open(t, config).Collect(t.Context(), id, openRoot(t, dir), false); err != nil {
		t.Fatal(err)
	}
	var sent []string
	for _, r := range proxy.Requests() {
		if _, query, ok := strings.Cut(r, "partNumber="); ok && strings.HasPrefix(r, "PUT") {
			sent = append(sent, query[:1])
		}
	}
	if strings.Join(sent, "") != "34" {
		t.Errorf("the second Collect sends the parts %q", sent)
	}
	files, err := storagetest.All(store.List(t.Context(), id, "outputs/"))
	if err != nil || len(files) != 1 || !strings.HasSuffix(files[0].ETag, "-4") {
		t.Errorf("outputs %+v, %v", files, err)
	}
	// What nobody goes on with is removed with the job.
	proxy.Inject(testenv.Reset, -1, part("2"))
	if _, err := store.Collect(t.Context(), id, openRoot(t, dir), false); err == nil {
		t.Fatal("Collect succeeds without its second part")
	}
	proxy.Heal()
	fatal(t, store.Remove(t.Context(), id))
}

// TestUploadBeginsAgain has the server refuse to go on with an upload that broke off:
// the next Collect begins another one.
func TestUploadBeginsAgain(t *testing.T) {
	t.Parallel()
	h, _ := startEmbedded(t, "")
	proxy := testenv.StartS3Proxy(t, h.URL)
	store := open(t, s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Patience: time.Second})
	const id = job.ID("again")
	fatal(t, store.Init(t.Context(), id, nil))
	dir := t.TempDir()
	fatal(t, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
	fatal(t, os.WriteFile(filepath.Join(dir, "outputs/large"), make([]byte, 40<<20), 0o600))
	var first string
	proxy.Inject(testenv.Reset, -1, func(r *http.Request) bool {
		if r.URL.Query().Get("partNumber") != "2" {
			return false
		}
		first = r.URL.Query().Get("uploadId")
		return true
	})
	if _, err := store.Collect(t.Context(), id, openRoot(t, dir), false); err == nil {
		t.Fatal("Collect succeeds without its second part")
	}
	proxy.Heal()
	proxy.Inject(testenv.NotImplemented, -1, func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.URL.Query().Get("uploadId") == first
	})
	if _, err := store.Collect(t.Context(), id, openRoot(t, dir), false); err != nil {
		t.Fatal(err)
	}
	if files, err := storagetest.All(store.List(t.Context(), id, "outputs/")); err != nil || len(files) != 1 || files[0].Size != 40<<20 {
		t.Errorf("outputs %+v, %v", files, err)
	}
	raw := minio.Core{Client: client(t, h.URL, h.AccessKey, h.SecretKey)}
	if left, err := raw.ListMultipartUploads(t.Context(), string(id), "", "", "", "", 10); err != nil || len(left.Uploads) != 0 {
		t.Errorf("uploads left: %+v, %v", left.Uploads, err)
	}
}

// TestPingWithoutRights asks with a key that may not list a stranger's bucket.
func TestPingWithoutRights(t *testing.T) {
	h, _ := startEmbedded(t, "")
	proxy := testenv.StartS3Proxy(t, h.URL)
	store := open(t, s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey})
	fatal(t, store.Ping(t.Context()))
	first := proxy.Requests()[0]
	other := open(t, s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey})
	proxy.Reset()
	fatal(t, other.Ping(t.Context()))
	if second := proxy.Requests()[0]; first == second {
		t.Errorf("two daemons ask for the same bucket: %s", first)
	}
	if err := open(t, s3.Config{URL: h.URL, AccessKey: h.AccessKey, SecretKey: "wrong"}).Ping(t.Context()); err == nil {
		t.Error("a wrong secret passes")
	}
}

// TestConfiguration refuses what cannot be.
func TestConfiguration(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	fatal(t, os.WriteFile(empty, nil, 0o600))
	for words, c := range map[string]s3.Config{
		"storage.addressing": {Addressing: "sideways"},
		"no certificate":     {CAFile: empty},
		"storage.ca_file":    {CAFile: filepath.Join(t.TempDir(), "none.pem")},
	} {
		c.URL, c.AccessKey, c.SecretKey = "https://s3.example.com", "access", "secret"
		if _, err := s3.New(c); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
}

// A file that cannot be removed keeps the job's state: what is left can be removed as a
// job later.
func TestRemoveKeepsTheState(t *testing.T) {
	for _, bucket := range []string{"", "shared"} {
		t.Run("bucket "+bucket, func(t *testing.T) {
			t.Parallel()
			h, _ := startEmbedded(t, bucket)
			proxy := testenv.StartS3Proxy(t, h.URL)
			takeAway["deletion of several files by one request"](proxy)
			proxy.Inject(testenv.NotImplemented, -1, func(r *http.Request) bool {
				return r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, "/outputs/z")
			})
			store := open(t, s3.Config{URL: proxy.URL, AccessKey: h.AccessKey, SecretKey: h.SecretKey, Bucket: bucket})
			fatal(t, store.Init(t.Context(), "stays", []byte("payload")))
			fatal(t, store.Put(t.Context(), "stays", "outputs/z", strings.NewReader("x"), 1))
			fatal(t, store.SetStatus(t.Context(), "stays", job.Status{State: job.Done}))
			if err := store.Remove(t.Context(), "stays"); !errdefs.IsUnavailable(err) {
				t.Errorf("Remove: %v", err)
			}
			if status, err := store.Status(t.Context(), "stays"); err != nil || status.State != job.Done {
				t.Errorf("the state of what is left: %+v, %v", status, err)
			}
			proxy.Heal()
			fatal(t, store.Remove(t.Context(), "stays"))
		})
	}
}
