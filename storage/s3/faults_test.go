package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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

// rig is a Store that reaches a server through a proxy that can break things.
type rig struct {
	server storagetest.Harness
	proxy  *testenv.S3Proxy
	store  *s3.Store
	raw    *minio.Client
}

// newRig is one with a MinIO.
func newRig(t *testing.T) *rig { return newRigFor(t, minioHarness("")) }

func newRigFor(t *testing.T, start func(*testing.T) storagetest.Harness) *rig {
	server := start(t)
	proxy := testenv.StartS3Proxy(t, server.URL)
	r := &rig{server: server, proxy: proxy, raw: client(t, server.URL, server.AccessKey, server.SecretKey)}
	// A busy machine is slow, which is no fault.
	r.store = open(t, r.config(time.Minute))
	return r
}

// config is of a Store for which a request fails that stands still for so long.
func (r *rig) config(stall time.Duration) s3.Config {
	return s3.Config{
		URL: r.proxy.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Patience: time.Minute, Stall: stall,
	}
}

func method(want string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == want }
}

func part(number string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == number }
}

func is(query string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == http.MethodPost && strings.Contains(r.URL.RawQuery, query)
	}
}

// TestFaults breaks single requests in every way and expects each call to come
// through, with what it stores or fetches whole.
func TestFaults(t *testing.T) {
	payload := make([]byte, 3<<20)
	large := make([]byte, 34<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(payload)
	_, _ = random.Read(large[:1<<20])

	for name, start := range map[string]func(*testing.T) storagetest.Harness{
		"MinIO": minioHarness(""), "Embedded": embeddedHarness(""),
		"VersityGW": gatewayHarness(testenv.StartVersityGW), "Rclone": rcloneHarness,
	} {
		for what, fault := range map[string]testenv.Fault{
			"Unavailable": testenv.Unavailable, "Reset": testenv.Reset, "LoseAnswer": testenv.LoseAnswer, "Stall": testenv.Stall,
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				r := newRigFor(t, start)
				if fault == testenv.Stall {
					config := r.config(3 * time.Second)
					config.Tries = 30 // for the requests that a busy machine takes as long for
					r.store = open(t, config)
				}
				r.comeThrough(t, fault, payload, large)
			})
		}
	}
}

// comeThrough breaks a request of each kind once.
func (r *rig) comeThrough(t *testing.T, fault testenv.Fault, payload, large []byte) {
	const id = job.ID("broken")
	broken := func(match func(*http.Request) bool) {
		t.Helper()
		r.proxy.Heal()
		r.proxy.Inject(fault, 1, match)
	}
	broken(method("PUT")) // making the bucket
	fatal(t, r.store.Init(t.Context(), id, payload))
	fatal(t, r.store.Remove(t.Context(), id))
	broken(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/inputs/input") })
	fatal(t, r.store.Init(t.Context(), id, payload))

	for _, match := range []func(*http.Request) bool{
		func(r *http.Request) bool { return r.URL.Query().Has("list-type") },
		func(r *http.Request) bool { return !r.URL.Query().Has("list-type") },
	} {
		broken(match)
		dir := t.TempDir()
		_, err := r.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
		fatal(t, err)
		got, err := os.ReadFile(filepath.Join(dir, "inputs/input"))
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes staged of %d, %v", len(got), len(payload), err)
		}
	}

	dir := t.TempDir()
	fatal(t, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
	fatal(t, os.WriteFile(filepath.Join(dir, "outputs/large"), large, 0o600))
	steps := []func(*http.Request) bool{is("uploads"), part("2"), is("uploadId")}
	if fault == testenv.Stall {
		steps = steps[:2] // joining the parts may take minutes, so standing still is no fault there
	}
	for _, match := range steps {
		broken(match)
		_, err := r.store.Collect(t.Context(), id, openRoot(t, dir), true)
		if r.server.KeepsParts && errdefs.IsUnavailable(err) {
			// rclone loses what it has of an upload with the last file of its folder.
			// The daemon calls Collect again, which begins anew.
			_, err = r.store.Collect(t.Context(), id, openRoot(t, dir), true)
		}
		fatal(t, err)
		r.has(t, id, "outputs/large", large)
		fatal(t, r.raw.RemoveObject(t.Context(), string(id), "outputs/large", minio.RemoveObjectOptions{}))
	}

	broken(method("PUT"))
	fatal(t, r.store.SetStatus(t.Context(), id, job.Status{State: job.Done}))
	broken(method("GET"))
	status, err := r.store.Status(t.Context(), id)
	fatal(t, err)
	if status.State != job.Done {
		t.Errorf("status %+v", status)
	}
	broken(is("delete"))
	fatal(t, r.store.Remove(t.Context(), id))
	broken(method("HEAD"))
	if exists, err := r.store.Exists(t.Context(), id); exists || err != nil {
		t.Errorf("Exists after Remove: %v, %v", exists, err)
	}
}

func (r *rig) has(t *testing.T, id job.ID, name string, want []byte) {
	t.Helper()
	object, err := r.raw.GetObject(t.Context(), string(id), name, minio.GetObjectOptions{})
	fatal(t, err)
	defer object.Close()
	got, err := io.ReadAll(object)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes of %d, or others: %v", name, len(got), len(want), err)
	}
}

// TestContinued breaks a download again and again; it goes on where it broke
// and gives up when the file is not the same any more.
func TestContinued(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := job.ID("continued")
	content := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(content)
	fatal(t, r.store.Init(t.Context(), id, content))

	for name, c := range map[string]struct {
		part *job.Range
		want []byte
	}{"Whole": {nil, content}, "Part": {&job.Range{Offset: 1000, Length: 3 << 20}, content[1000 : 1000+3<<20]}, "Suffix": {&job.Range{Offset: -1 << 20, Length: -1}, content[3<<20:]}} {
		t.Run(name, func(t *testing.T) {
			r.proxy.Heal()
			r.proxy.Inject(testenv.CutBody, 6, method("GET"))
			r.proxy.Reset()
			file, err := r.store.Open(t.Context(), id, "inputs/input", c.part)
			fatal(t, err)
			defer file.Body.Close()
			got, err := io.ReadAll(file.Body)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%d bytes of %d, or others: %v", len(got), len(c.want), err)
			}
			if gets := r.proxy.Counts()["GET"]; gets != 7 {
				t.Errorf("%d GETs, want 7", gets)
			}
		})
	}

	t.Run("Changed", func(t *testing.T) {
		r.proxy.Heal()
		r.proxy.Inject(testenv.CutBody, 1, method("GET"))
		file, err := r.store.Open(t.Context(), id, "inputs/input", nil)
		fatal(t, err)
		defer file.Body.Close()
		_, err = r.raw.PutObject(t.Context(), string(id), "inputs/input", bytes.NewReader(make([]byte, len(content))), int64(len(content)), minio.PutObjectOptions{})
		fatal(t, err)
		got, err := io.ReadAll(file.Body)
		if !errdefs.IsUnavailable(err) || !bytes.Equal(got, content[:len(got)]) {
			t.Errorf("%d bytes of two versions of a file, %v", len(got), err)
		}
	})

	// The first Stage is ended half-way. The second fetches only the rest, but that of another
	// process fetches everything: what a process has begun and left may lack any bytes.
	for name, c := range map[string]struct {
		other bool
		asked string
	}{"StageAgain": {false, "bytes=2097152-4194303"}, "StageOfAnotherProcess": {true, "bytes=0-4194303"}} {
		t.Run(name, func(t *testing.T) {
			r.proxy.Heal()
			id := job.ID(strings.ToLower(name)) // others change the input of the first
			fatal(t, r.store.Init(t.Context(), id, content))
			r.proxy.Inject(testenv.CutBody, 1, func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "input") })
			r.proxy.Inject(testenv.Unavailable, -1, func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "input") })
			dir := t.TempDir()
			_, err := r.store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
			if !errdefs.IsUnavailable(err) {
				t.Fatalf("Stage: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, "inputs/input")); !os.IsNotExist(err) {
				t.Errorf("half a file is among the inputs: %v", err)
			}
			r.proxy.Heal()
			var asked string
			r.proxy.Inject(testenv.Unavailable, -1, func(r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "input") {
					asked = r.Header.Get("Range")
				}
				return false
			})
			again := r.store
			if c.other {
				again = open(t, r.config(time.Minute))
			}
			_, err = again.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
			fatal(t, err)
			if asked != c.asked {
				t.Errorf("the second Stage asks for %q, want %q", asked, c.asked)
			}
			got, err := os.ReadFile(filepath.Join(dir, "inputs/input"))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes staged of %d, %v", len(got), len(content), err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 2 {
				t.Errorf("the working directory holds %v", entries)
			}
		})
	}
}

// TestHalfMade lets the input of an Init fail after its bucket was made: the
// client's next try must not be told that the id is taken.
func TestHalfMade(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	object := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/input") }
	t.Run("Undone", func(t *testing.T) {
		r.proxy.Inject(testenv.Unavailable, -1, object)
		for n := range 5 { // a server of a busy machine may take longer than the removal may
			id := job.ID(fmt.Sprint("undone-", n))
			if err := r.store.Init(t.Context(), id, []byte("x")); !errdefs.IsUnavailable(err) {
				t.Fatalf("Init: %v", err)
			}
			exists, err := r.raw.BucketExists(t.Context(), string(id))
			fatal(t, err)
			if !exists {
				return
			}
		}
		t.Error("the buckets stay")
	})
	t.Run("Unanswered", func(t *testing.T) {
		r.proxy.Heal()
		r.proxy.Inject(testenv.LoseAnswer, -1, method("PUT"))
		if err := r.store.Init(t.Context(), "unanswered", []byte("x")); !errdefs.IsUnavailable(err) {
			t.Fatalf("Init: %v", err)
		}
		r.proxy.Heal()
		fatal(t, r.store.Init(t.Context(), "unanswered", []byte("x")))
		r.has(t, "unanswered", "inputs/input", []byte("x"))
	})
	t.Run("Remembered", func(t *testing.T) {
		r.proxy.Heal()
		r.proxy.Inject(testenv.Unavailable, -1, func(r *http.Request) bool { return object(r) || r.Method == http.MethodDelete })
		if err := r.store.Init(t.Context(), "remembered", []byte("x")); !errdefs.IsUnavailable(err) {
			t.Fatalf("Init: %v", err)
		}
		r.proxy.Heal()
		fatal(t, r.store.Init(t.Context(), "remembered", []byte("x")))
		r.has(t, "remembered", "inputs/input", []byte("x"))
	})
}

// TestBucketMadeThenAway loses the answer to making a bucket, and has storage
// away from then on: however many tries find nobody there, the first that finds
// storage back makes the submission whole.
func TestBucketMadeThenAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	store := open(t, s3.Config{URL: r.proxy.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Patience: 200 * time.Millisecond})
	fatal(t, r.store.Init(t.Context(), "before", []byte("x"))) // the server is up for good
	r.proxy.Inject(testenv.LoseAnswer, 1, method("PUT"))
	r.proxy.Inject(testenv.Unavailable, -1, nil)
	for range 2 {
		if err := store.Init(t.Context(), "made", []byte("x")); !errdefs.IsUnavailable(err) {
			t.Fatalf("Init while storage is away: %v", err)
		}
	}
	if exists, err := r.raw.BucketExists(t.Context(), "made"); !exists || err != nil {
		t.Fatalf("the bucket was not made: %v", err)
	}
	r.proxy.Heal()
	fatal(t, store.Init(t.Context(), "made", []byte("x")))
	r.has(t, "made", "inputs/input", []byte("x"))
}

// TestCutShort has a daemon killed between making a bucket and writing the input:
// the next one makes the submission whole, and only that one.
func TestCutShort(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	folder := t.TempDir()
	config := s3.Config{URL: r.proxy.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Submissions: folder}
	r.proxy.Inject(testenv.Unavailable, -1, func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/input") || r.Method == http.MethodDelete
	})
	if err := open(t, config).Init(t.Context(), "cut-short", []byte("x")); !errdefs.IsUnavailable(err) {
		t.Fatalf("Init: %v", err)
	}
	r.proxy.Heal()
	fatal(t, r.raw.MakeBucket(t.Context(), "somebody-elses", minio.MakeBucketOptions{}))
	next := open(t, config)
	fatal(t, next.Init(t.Context(), "cut-short", []byte("x")))
	r.has(t, "cut-short", "inputs/input", []byte("x"))
	for _, id := range []job.ID{"cut-short", "somebody-elses"} {
		if err := next.Init(t.Context(), id, []byte("y")); !errors.Is(err, storage.ErrExists) {
			t.Errorf("Init of %s: %v", id, err)
		}
	}
	fatal(t, r.raw.RemoveObject(t.Context(), "cut-short", "inputs/input", minio.RemoveObjectOptions{}))
	if err := open(t, config).Init(t.Context(), "cut-short", []byte("x")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("a submission that ended counts as under way: Init: %v", err)
	}
}

// TestCutShortElsewhere has another daemon of a fleet killed between making a bucket and
// writing into it: the bucket is taken, and one that has something in it is not.
func TestCutShortElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	config := s3.Config{URL: r.server.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Submissions: t.TempDir(), Shared: true}
	store := open(t, config)
	for _, id := range []string{"left", "reserved"} {
		fatal(t, r.raw.MakeBucket(t.Context(), id, minio.MakeBucketOptions{}))
	}
	fatal(t, store.Init(t.Context(), "left", []byte("x")))
	r.has(t, "left", "inputs/input", []byte("x"))
	fatal(t, store.Reserve(t.Context(), "reserved", job.Status{State: job.Queued}))
	for _, id := range []job.ID{"left", "reserved"} {
		if err := store.Init(t.Context(), id, []byte("y")); !errors.Is(err, storage.ErrExists) {
			t.Errorf("Init of %s: %v", id, err)
		}
	}
}

// TestOutage stops the server under a Store and starts it again.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := testenv.StartMinIO(t)
	store := open(t, s3.Config{URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	fatal(t, store.Init(t.Context(), "before", []byte("payload")))
	server.Kill()
	for name, err := range map[string]error{
		"Ping": store.Ping(t.Context()),
		"Init": store.Init(t.Context(), "during", []byte("payload")),
	} {
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "storage at "+server.URL+" is not reachable: ") {
			t.Errorf("%s while storage is down: %v", name, err)
		}
	}
	server.Start()
	fatal(t, store.Ping(t.Context()))
	fatal(t, store.Init(t.Context(), "during", []byte("payload")))
	if _, err := store.Stage(t.Context(), "before", openRoot(t, t.TempDir()), storage.Options{}); err != nil {
		t.Error(err)
	}
}

// TestGivesUp sees how a fault that stays is told, and that the caller's
// deadline ends it.
func TestGivesUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fatal(t, r.store.Init(t.Context(), "job", []byte("payload")))
	for fault, words := range map[testenv.Fault]string{
		testenv.Unavailable: "cannot answer now (SlowDown", testenv.Reset: "is not reachable", testenv.Stall: "no answer for 1s",
	} {
		stall := time.Minute // a busy machine is slow
		if fault == testenv.Stall {
			stall = time.Second
		}
		impatient := open(t, s3.Config{URL: r.proxy.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Patience: 1, Stall: stall})
		r.proxy.Heal()
		r.proxy.Inject(fault, -1, nil)
		_, err := impatient.Status(t.Context(), "job")
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want one with %q", err, words)
		}
	}
	r.proxy.Heal()
	r.proxy.Inject(testenv.Stall, -1, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := r.store.Status(ctx, "job"); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("error %v after the caller's deadline", err)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFailsInside has the server begin to answer with success and then say, in the body,
// that it failed, as S3 does: nothing may be taken for copied, joined or removed that is
// not.
func TestFailsInside(t *testing.T) {
	t.Parallel()
	const id = job.ID("inside")
	r := newRigFor(t, embeddedHarness(""))
	fatal(t, r.store.Init(t.Context(), id, []byte("x")))
	small, large := []byte("small"), make([]byte, 33<<20)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(large[:1<<20])
	dir := t.TempDir()
	fatal(t, os.Mkdir(filepath.Join(dir, "outputs"), 0o755))
	fatal(t, os.WriteFile(filepath.Join(dir, "outputs/small"), small, 0o600))
	fatal(t, os.WriteFile(filepath.Join(dir, "outputs/large"), large, 0o600))
	apart, err := r.store.CollectApart(t.Context(), id, 1, openRoot(t, dir))
	fatal(t, err)

	copies := func(r *http.Request) bool { return r.Header.Get("X-Amz-Copy-Source") != "" }
	r.proxy.Inject(testenv.FailInside, -1, copies)
	impatient := open(t, s3.Config{URL: r.proxy.URL, AccessKey: r.server.AccessKey, SecretKey: r.server.SecretKey, Patience: 1})
	again, err := impatient.CollectApart(t.Context(), id, 2, openRoot(t, dir))
	fatal(t, err)
	if err := again.Promote(t.Context(), true); !errdefs.IsUnavailable(err) {
		t.Errorf("Promote of which every copy fails: %v", err)
	}
	fatal(t, again.Discard(t.Context()))

	r.proxy.Heal()
	r.proxy.Inject(testenv.FailInside, 2, copies) // one of each file
	r.proxy.Inject(testenv.FailInside, 1, is("uploadId"))
	fatal(t, apart.Promote(t.Context(), true))
	r.has(t, id, "outputs/small", small)
	r.has(t, id, "outputs/large", large)

	r.proxy.Heal()
	r.proxy.Inject(testenv.FailInside, 1, is("delete"))
	fatal(t, apart.Discard(t.Context()))
	for info, err := range r.store.List(t.Context(), id, ".attempts/") {
		t.Errorf("%s stays, %v", info.Name, err)
	}
	fatal(t, r.store.Remove(t.Context(), id))
}
