package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

func newStore(t *testing.T, config Config) *Store {
	t.Helper()
	if config.AccessKey == "" {
		config.AccessKey, config.SecretKey = "key", "hush-hush"
	}
	store, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{
		"host":                               "http://host",
		"host:9000":                          "http://host:9000",
		"http://host:9000":                   "http://host:9000",
		"http://host:9000/":                  "http://host:9000",
		"https://host":                       "https://host",
		"[::1]:9000":                         "http://[::1]:9000",
		"https://s3.eu-west-1.amazonaws.com": "https://s3.eu-west-1.amazonaws.com",
		"":                                   "",
		"ftp://host":                         "",
		"http://":                            "",
		"http://host/path":                   "",
		"http://user:password@host":          "",
		"http://host?x=y":                    "",
		"host:port":                          "",
	} {
		store, err := New(Config{URL: text, AccessKey: "key", SecretKey: "secret"})
		switch {
		case want == "" && (err == nil || strings.Contains(err.Error(), "password")):
			t.Errorf("%q is accepted, or its password repeated: %v", text, err)
		case want != "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && store.objects.client.EndpointURL().String() != want+"/" && store.objects.client.EndpointURL().String() != want:
			t.Errorf("%q is taken for %s, want %s", text, store.objects.client.EndpointURL(), want)
		}
	}
	for _, config := range []Config{{URL: "host"}, {URL: "host", AccessKey: "key"}, {URL: "host", AccessKey: "key", SecretKey: "secret", Bucket: "No_Bucket"}} {
		if _, err := New(config); err == nil {
			t.Errorf("%+v is accepted", config)
		}
	}
}

func TestCheckIDSaysWhichRule(t *testing.T) {
	store := newStore(t, Config{URL: "host"})
	for id, rule := range map[job.ID]string{
		"ab": "3 to 63", job.ID(strings.Repeat("a", 64)): "3 to 63", "Abc": "lower-case", "a_b": "lower-case",
		"-abc": "begin and end", "abc.": "begin and end", "a..b": "both sides", "a.-b": "both sides", "10.0.0.1": "IP address",
	} {
		err := store.CheckID(id)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), rule) {
			t.Errorf("%q: %v, want it to say %q", id, err, rule)
		}
		if text := err.Error(); strings.Contains(text, errdefs.ErrInvalidArgument.Error()) {
			t.Errorf("%q: %q speaks to clients and names its class", id, text)
		}
	}
	prefixed := newStore(t, Config{URL: "host", Bucket: "shared"})
	for _, id := range []job.ID{"a", "A_b.C-d", job.ID(strings.Repeat("a", 128))} {
		if err := prefixed.CheckID(id); err != nil {
			t.Errorf("with a prefix per job: %v", err)
		}
	}
}

// TestAnswers has a server refuse a request in all the ways servers do.
func TestAnswers(t *testing.T) {
	for code, c := range map[string]struct {
		status int
		is     func(error) bool
		words  string
		tries  int
	}{
		"NoSuchKey":                    {404, errdefs.IsNotFound, `"job_status.json" is not in storage`, 1},
		"NoSuchBucket":                 {404, errdefs.IsNotFound, "is not in storage", 1},
		"InvalidAccessKeyId":           {403, errdefs.IsPermissionDenied, `access key "key"`, 1},
		"SignatureDoesNotMatch":        {403, errdefs.IsPermissionDenied, "check storage.secret_key", 1},
		"AccessDenied":                 {403, errdefs.IsPermissionDenied, "give the key the right", 1},
		"RequestTimeTooSkewed":         {403, errdefs.IsPermissionDenied, "the clocks differ", 1},
		"ExpiredToken":                 {400, errdefs.IsPermissionDenied, "new credentials", 1},
		"AuthorizationHeaderMalformed": {400, errdefs.IsPermissionDenied, "set storage.region", 1},
		"SomethingForbidden":           {403, errdefs.IsPermissionDenied, "check storage.access_key", 1},
		"XMinioStorageFull":            {507, errdefs.IsResourceExhausted, "has no room", 1},
		"QuotaExceeded":                {403, errdefs.IsResourceExhausted, "has no room", 1},
		"InvalidRange":                 {416, errdefs.IsOutOfRange, "lies outside", 1},
		"XMinioInvalidObjectName":      {400, errdefs.IsInvalidArgument, "does not allow the name", 1},
		"NotImplemented":               {501, errdefs.IsUnavailable, "cannot do what shepherd needs", 1},
		"SlowDown":                     {503, errdefs.IsUnavailable, "cannot answer now", 3},
		"InternalError":                {500, errdefs.IsUnavailable, "cannot answer now", 3},
		"XAmzContentSHA256Mismatch":    {400, errdefs.IsUnavailable, "cannot answer now", 3},
		"InvalidRequest":               {400, errdefs.IsInvalidArgument, "does not accept the request", 1},
		"OperationAborted":             {409, errdefs.IsUnavailable, "cannot answer now", 3},
		"RequestTimeout":               {400, errdefs.IsUnavailable, "cannot answer now", 3},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(c.status)
				fmt.Fprintf(w, "<Error><Code>%s</Code><Message>because</Message><Key>job_status.json</Key></Error>", code)
			}))
			defer server.Close()
			_, err := newStore(t, Config{URL: server.URL, Tries: 3, Patience: time.Minute}).Status(t.Context(), "some-job")
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), "hush-hush") {
				t.Errorf("error %v, want one that says %q", err, c.words)
			}
			if asked != c.tries {
				t.Errorf("asked %d times, want %d", asked, c.tries)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake is what this is for
	server.StartTLS()
	defer server.Close()
	_, err := newStore(t, Config{URL: server.URL}).Status(t.Context(), "some-job")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "certificate is not one this machine trusts") {
		t.Errorf("unknown certificate: %v", err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	_, err = newStore(t, Config{URL: "https" + strings.TrimPrefix(plain.URL, "http")}).Status(t.Context(), "some-job")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "write http:// in storage.url") {
		t.Errorf("TLS to a plain server: %v", err)
	}
}

func TestBadStatus(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		fmt.Fprint(w, "{half a sta")
	}))
	defer server.Close()
	if _, err := newStore(t, Config{URL: server.URL}).Status(t.Context(), "some-job"); !errdefs.IsDataLoss(err) {
		t.Errorf("error %v", err)
	}
}

// TestLargerThanTheDisk stages what no disk of this machine could hold.
func TestLargerThanTheDisk(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<ListBucketResult><Name>some-job</Name><Contents><Key>inputs/input</Key><Size>4611686018427387904</Size><ETag>"x"</ETag></Contents></ListBucketResult>`)
	}))
	defer server.Close()
	_, err := newStore(t, Config{URL: server.URL}).Stage(t.Context(), "some-job", openRoot(t, t.TempDir()), storage.Options{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "4611686018427387904 bytes") {
		t.Errorf("error %v", err)
	}
}

// TestReclaims has a server with which making a bucket of one's own that is there already
// succeeds, as with AWS in us-east-1 and Ceph.
func TestReclaims(t *testing.T) {
	t.Parallel()
	server := testenv.StartMinIO(t)
	proxy := testenv.StartS3Proxy(t, server.URL)
	lenient := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		proxy.ServeHTTP(answer, r)
		if r.Method == http.MethodPut && strings.Count(strings.Trim(r.URL.Path, "/"), "/") == 0 && answer.Code == http.StatusConflict {
			w.WriteHeader(http.StatusOK)
			return
		}
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	defer lenient.Close()
	store := newStore(t, Config{URL: lenient.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	for name, err := range map[string]error{
		"first": store.Init(t.Context(), "job", []byte("payload")),
		"same":  store.Init(t.Context(), "job", []byte("payload")),
	} {
		if err != nil {
			t.Errorf("%s Init: %v", name, err)
		}
	}
	if err := store.Init(t.Context(), "job", []byte("another")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("Init of a taken place: %v", err)
	}
	if err := store.Put(t.Context(), "job", "outputs/x", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := store.Init(t.Context(), "job", []byte("payload")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("Init of a place in use: %v", err)
	}
	// The first bucket that a daemon creates may be a taken one.
	store = newStore(t, Config{URL: lenient.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	if err := store.Init(t.Context(), "job", []byte("payload")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("the first Init, of a place in use: %v", err)
	}
	// A place without an input does not fail the condition under which that is written.
	if err := store.objects.remove(t.Context(), "job", inputName); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"the first", "a later"} {
		if what == "the first" {
			store = newStore(t, Config{URL: lenient.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
		}
		if err := store.Init(t.Context(), "job", []byte("payload")); !errors.Is(err, storage.ErrExists) {
			t.Errorf("%s Init, of a place with outputs alone: %v", what, err)
		}
	}
}

// TestUmask stages under a daemon's strict umask; the runner may be another user.
func TestUmask(t *testing.T) {
	server := testenv.StartMinIO(t)
	store := newStore(t, Config{URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	if err := store.Init(t.Context(), "umask", []byte("payload")); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), "umask", "inputs/a/b", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	before := syscall.Umask(0o077)
	_, err := store.Stage(t.Context(), "umask", openRoot(t, dir), storage.Options{})
	syscall.Umask(before)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"inputs": 0o755, "outputs": 0o755, "inputs/a": 0o755, "inputs/a/b": 0o644, "inputs/input": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

// TestShrinking collects a file that becomes shorter between its two readings.
func TestShrinking(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer server.Close()
	store := newStore(t, Config{URL: server.URL})
	for name, size := range map[string]int64{"Small": 100, "Large": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			err := store.objects.putFile(t.Context(), "bucket", "key", strings.NewReader(strings.Repeat("x", int(size)/2)), size, make(slots, 1))
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "became shorter") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestSubmissionsIsBounded(t *testing.T) {
	folder := t.TempDir()
	b := newSubmissions(t, folder)
	for n := range maxSubmissions + 10 {
		if already, err := b.begin(job.ID(fmt.Sprint("job-", n))); already || err != nil {
			t.Fatal(already, err)
		}
	}
	if next := newSubmissions(t, folder); len(b.ids) != maxSubmissions || !maps.Equal(next.ids, b.ids) {
		t.Errorf("%d remembered, %d by the next; want %d", len(b.ids), len(next.ids), maxSubmissions)
	}
}

func newSubmissions(t *testing.T, folder string) *submissions {
	t.Helper()
	s, err := openSubmissions(folder)
	fatal(t, err)
	t.Cleanup(func() { fatal(t, s.close()) })
	return s
}

// What was begun is remembered by the next Store, and forgotten when it is done.
func TestSubmissionsSurvives(t *testing.T) {
	folder := t.TempDir()
	b := newSubmissions(t, folder)
	for _, id := range []job.ID{"done", "cut-short"} {
		_, err := b.begin(id)
		fatal(t, err)
	}
	fatal(t, b.end("done"))
	fatal(t, os.WriteFile(filepath.Join(folder, "of-an-older-version"), nil, 0o600))
	log, err := os.OpenFile(filepath.Join(folder, submissionsLog), os.O_APPEND|os.O_WRONLY, 0)
	fatal(t, err)
	_, err = log.WriteString("\n?\n+..\n+torn")
	fatal(t, errors.Join(err, log.Close()))
	b = newSubmissions(t, folder)
	for id, want := range map[job.ID]bool{"done": false, "cut-short": true, "of-an-older-version": true, "torn": false} {
		if already, err := b.begin(id); already != want || err != nil {
			t.Errorf("%s: remembered %t, want %t; error %v", id, already, want, err)
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 1 {
		t.Errorf("%d files in the folder, want the log alone: %v", len(left), err)
	}
}

// A log that has grown is rewritten with what is remembered; the last line that a
// full disk cut short is written over.
func TestSubmissionsLog(t *testing.T) {
	folder := t.TempDir()
	b := newSubmissions(t, folder)
	if _, err := b.begin("kept"); err != nil {
		t.Fatal(err)
	}
	largest := int64(0)
	for n := range 40_000 {
		id := job.ID(fmt.Sprintf("job-%030d", n))
		_, err := b.begin(id)
		fatal(t, errors.Join(err, b.end(id)))
		largest = max(largest, b.size)
	}
	if limit := int64(minSubmissionsLog + 100); largest > limit || b.size >= largest {
		t.Errorf("the log grew to %d bytes, limit %d, and has %d", largest, limit, b.size)
	}
	_, err := b.log.WriteAt([]byte("+torn-line"), b.size)
	fatal(t, err)
	_, err = b.begin("x")
	fatal(t, err)
	next := newSubmissions(t, folder)
	if want := map[job.ID]struct{}{"kept": {}, "x": {}}; !maps.Equal(next.ids, want) {
		t.Errorf("remembered: %v, want %v", next.ids, want)
	}
}

func TestPartSize(t *testing.T) {
	for _, size := range []int64{1, 32 << 20, 33 << 20, 1 << 30, 320_000 << 20, 320_000<<20 + 1, 5 << 40} {
		part := partSizeFor(size, largePart)
		if count := (size + part - 1) / part; part < largePart || count > maxParts || part%(1<<20) != 0 {
			t.Errorf("%d bytes in %d parts of %d", size, count, part)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-3/4", "bytes 0-0/1", "bytes */4", "bytes 3-0/4", "bytes 0-9/4", "bytes -1-3/4", "", "bytes 0-9223372036854775807/9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		first, last, size, err := parseContentRange(header)
		if err == nil && (first < 0 || first > last || last >= size) {
			t.Errorf("%q is %d-%d/%d", header, first, last, size)
		}
	})
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	fatal(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestReadersTime tells of a request without the time that the reader of its answer took,
// which does not end it either.
func TestReadersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []time.Duration
		r := requester{tries: 1, observe: func(_ string, took time.Duration, _ error) { told = append(told, took) }}
		err := r.try(t.Context(), "list", time.Minute, func(ctx context.Context, w *watch) error {
			for range 3 {
				time.Sleep(2 * time.Second) // a page
				w.meanwhile(func() { time.Sleep(time.Hour) })
			}
			return context.Cause(ctx)
		})
		if err != nil || len(told) != 1 || told[0] != 6*time.Second {
			t.Errorf("it took %v, %v", told, err)
		}
	})
}

// TestUnconfirmedRemoval has a server refuse one file of a batch in a way that the client
// library passes over: the file is removed by a request of its own.
func TestUnconfirmedRemoval(t *testing.T) {
	var alone []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			fmt.Fprint(w, `<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>InvalidArgument</Code><Message>not so</Message></Error></DeleteResult>`)
		case http.MethodDelete:
			alone = append(alone, r.URL.Path)
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer server.Close()
	store := newStore(t, Config{URL: server.URL})
	if err := store.objects.removeBatch(t.Context(), "bucket", []string{"a", "b"}); err != nil {
		t.Error(err)
	}
	if len(alone) != 1 || alone[0] != "/bucket/b" {
		t.Errorf("removed alone: %q", alone)
	}
}

// TestNoS3Server has URLs at which a web server answers, as MinIO's console does: nothing
// may count as stored, staged or there.
func TestNoS3Server(t *testing.T) {
	const page = "<!doctype html><html><head><title>Console</title></head><body></body></html>"
	for name, answer := range map[string]http.HandlerFunc{
		"Console":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) },
		"NoPage":   func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"Secret":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "forbidden", http.StatusForbidden) },
		"Document": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(answer)
			defer server.Close()
			for _, bucket := range []string{"", "shared"} {
				store := newStore(t, Config{URL: server.URL, Bucket: bucket, Patience: 1})
				root, err := os.OpenRoot(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				defer root.Close()
				_, stage := store.Stage(t.Context(), "some-job", root, storage.Options{})
				for what, err := range map[string]error{"Ping": store.Ping(t.Context()), "Stage": stage} {
					if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "is not an S3 storage: check storage.url") {
						t.Errorf("%s with bucket %q: %v", what, bucket, err)
					}
				}
				if name != "Console" {
					continue
				}
				for what, err := range map[string]error{
					"Init": store.Init(t.Context(), "some-job", []byte("payload")),
					"Put":  store.Put(t.Context(), "some-job", "outputs/x", strings.NewReader("x"), 1), "Remove": store.Remove(t.Context(), "some-job"),
				} {
					if !errdefs.IsUnavailable(err) {
						t.Errorf("%s with bucket %q: %v", what, bucket, err)
					}
				}
			}
		})
	}
}

// TestCarelessTypes has a server that says of all its answers that they are pages, as those
// made with some web frameworks do.
func TestCarelessTypes(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		switch {
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost:
			fmt.Fprint(w, `<?xml version="1.0"?><DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>`)
		case r.URL.Query().Has("list-type"):
			fmt.Fprint(w, `<?xml version="1.0"?><ListBucketResult><Name>bucket</Name></ListBucketResult>`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`)
		}
	}))
	defer server.Close()
	store := newStore(t, Config{URL: server.URL, Bucket: "shared", Patience: 1})
	if err := store.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	if exists, err := store.Exists(t.Context(), "some-job"); err != nil || exists {
		t.Errorf("Exists: %v, %v", exists, err)
	}
	if _, err := store.Open(t.Context(), "some-job", "outputs/x", nil); !errdefs.IsNotFound(err) {
		t.Errorf("Open: %v", err)
	}
	if err := store.Remove(t.Context(), "some-job"); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("Remove: %v", err)
	}
	if err := store.objects.removeBatch(t.Context(), "shared", []string{"a", "b"}); err != nil {
		t.Errorf("removal of a batch: %v", err)
	}
}

// TestStoredPage: a page that is a file is fetched as any other.
func TestStoredPage(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("ETag", `"0123"`)
		http.ServeContent(w, r, "", time.Unix(1e9, 0), strings.NewReader("<!doctype html>"))
	}))
	defer server.Close()
	file, err := newStore(t, Config{URL: server.URL}).Open(t.Context(), "some-job", "outputs/index.html", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Body.Close()
	if text, err := io.ReadAll(file.Body); string(text) != "<!doctype html>" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestBodyEnds has a server refuse a body before it has read it: the request does not end
// before the Read under way does, because the caller then closes the file, or uses the
// buffer for something else.
func TestBodyEnds(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadFull(r.Body, make([]byte, 1))
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	store := newStore(t, Config{URL: server.URL, Tries: 1})
	const size = 1 << 20
	source := &slowSource{t: t, fast: size + 256<<10, ended: make(chan struct{})}
	err := store.objects.putOnce(t.Context(), "bucket", "key", source, size)
	close(source.ended)
	if !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

// slowSource is of zeros, and slow after some bytes: those of the hash, and what a server
// has to get to answer.
type slowSource struct {
	t     *testing.T
	fast  int
	ended chan struct{} // closed when the request has ended
}

func (s *slowSource) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	if s.fast -= len(p); s.fast < 0 {
		select {
		case <-s.ended:
			s.t.Error("the request has ended before its body was read")
		case <-time.After(500 * time.Millisecond): // in a shorter time the test sees less
		}
	}
	return len(p), nil
}

// TestResumeEnds: what is stored of a large file is compared with it until the caller's
// context ends, and no longer.
func TestResumeEnds(t *testing.T) {
	const partSize, size = 1 << 20, 8 << 20
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		if r.URL.Query().Has("uploads") {
			fmt.Fprint(w, `<ListMultipartUploadsResult><Upload><Key>key</Key><UploadId>id</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>`)
			return
		}
		fmt.Fprint(w, `<ListPartsResult>`)
		for n := range size / partSize {
			fmt.Fprintf(w, `<Part><PartNumber>%d</PartNumber><ETag>"x"</ETag><Size>%d</Size></Part>`, n+1, partSize)
		}
		fmt.Fprint(w, `</ListPartsResult>`)
	}))
	defer server.Close()
	store := newStore(t, Config{URL: server.URL})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	source := &endingSource{cancel: cancel}
	_, err := store.objects.resumeUpload(ctx, "bucket", "key", size/partSize, source, partSize, size)
	if !errors.Is(err, context.Canceled) || source.end != partSize {
		t.Errorf("%v after %d bytes", err, source.end)
	}
}

// endingSource is of zeros, and cancels when it is read.
type endingSource struct {
	cancel context.CancelFunc
	end    int64 // of what was read
}

func (s *endingSource) ReadAt(p []byte, offset int64) (int, error) {
	s.cancel()
	clear(p)
	s.end = max(s.end, offset+int64(len(p)))
	return len(p), nil
}
