package api

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

func TestFileNames(t *testing.T) {
	claims.Hold(t, "C12")
	h := newHarness(t)
	done := h.service.add("done", job.Done)
	for _, name := range []string{"output", "sub/x.txt", "a b.csv", "100%.json", "a,b;c=d.txt", "ü/☃.png", "...", "%2F", "a:b", "x+y", `back\slash`} {
		done.outputs[name] = []byte(name)
	}
	for asked, name := range map[string]string{
		"/result":                          "output",
		"/result/output":                   "output",
		"/result/sub/x.txt":                "sub/x.txt",
		"/result/sub%2Fx.txt":              "sub/x.txt",
		"/result/sub%2fx%2Etxt":            "sub/x.txt",
		"/result/a%20b.csv":                "a b.csv",
		"/result/100%25.json":              "100%.json",
		"/result/a,b;c=d.txt":              "a,b;c=d.txt",
		"/result/%C3%BC/%E2%98%83.png":     "ü/☃.png",
		"/result/%C3%BC%2F%E2%98%83.png":   "ü/☃.png",
		"/result/...":                      "...",
		"/result/%252F":                    "%2F",
		"/result/a:b":                      "a:b",
		"/result/x+y":                      "x+y",
		"/result/back%5Cslash":             `back\slash`,
		"/result/sub/x.txt?download=1&a=b": "sub/x.txt",
	} {
		if got := h.get("/jobs/done" + asked); got.status != 200 || got.body != name {
			t.Errorf("%s: %d %q, want %q", asked, got.status, got.body, name)
		}
	}
	for _, escaping := range []string{
		"..%2Foutput", "../output", "sub/../output", "sub%2F..%2Foutput", "%2Fetc%2Fpasswd", "/etc/passwd", ".", "..", "%2E%2E", "./output",
		"sub//x.txt", "sub%2F%2Fx.txt", "sub/", "sub%2F", "a%00b", "%FF", strings.Repeat("x", 1025),
	} {
		h.expect(h.get("/jobs/done/result/"+escaping), 404, `{"message": "Requested file does not exist"}`)
		h.expect(h.get("/jobs/done/input/"+escaping), 404, `{"message": "Requested file does not exist"}`)
	}
}

func TestFileHeaders(t *testing.T) {
	h := newHarness(t)
	done := h.service.add("done", job.Done)
	done.outputs["a/b.json"] = []byte("0123456789")
	done.outputs["empty"] = nil
	got := h.get("/jobs/done/result/a%2Fb.json")
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Content-Length": "10", "Etag": `"v1"`, "Accept-Ranges": "bytes",
		"Last-Modified": "Sun, 22 Nov 2026 10:08:04 GMT", "Content-Range": "", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff",
	} {
		if got.header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.header.Get(name), want)
		}
	}
	if n := h.service.opened.Load(); n != 1 {
		t.Errorf("storage was asked %d times", n)
	}
	if got := h.get("/jobs/done/result/empty"); got.status != 200 || got.body != "" || got.header.Get("Content-Length") != "0" {
		t.Errorf("empty file: %d %q %v", got.status, got.body, got.header)
	}
	for _, ask := range []string{"bytes=0-", "bytes=-5"} {
		if got := h.get("/jobs/done/result/empty", "Range", ask); got.status != 416 || got.header.Get("Content-Range") != "bytes */0" {
			t.Errorf("%s of an empty file: %d %v", ask, got.status, got.header)
		}
	}
}

// failingBody yields some bytes and then an error.
func failingBody(bytes int64, err error) func(job.Range) io.ReadCloser {
	return func(job.Range) io.ReadCloser {
		return io.NopCloser(io.MultiReader(io.LimitReader(endless{}, bytes), failing{err}))
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestStorageFailsBeforeTheFirstByte(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done).outputs["output"] = make([]byte, 1000)
	h.service.body = failingBody(0, errdefs.ErrUnavailable)
	got := h.get("/jobs/done/result")
	h.expect(got, 503, `{"message": "A service that shepherd depends on is not reachable; try again later"}`)
	for _, name := range []string{"Etag", "Last-Modified", "Accept-Ranges"} {
		if got.header.Get(name) != "" {
			t.Errorf("the error has the file's %s", name)
		}
	}
}

func TestStorageFailsInTheMiddle(t *testing.T) {
	for _, failure := range []error{errors.New("connection reset"), io.EOF} {
		h := newHarness(t)
		h.service.add("done", job.Done).outputs["output"] = make([]byte, 1<<20)
		h.service.body = failingBody(300_000, failure)
		response, err := h.client.Get(h.url + "/jobs/done/result")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if n, err := io.Copy(io.Discard, response.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: the client read %d bytes and took them for the whole: %v", failure, n, err)
		}
		if lines := h.log.lines(slog.LevelError); len(lines) != 1 || !strings.Contains(lines[0], "download broken off") {
			t.Errorf("log %q", lines)
		}
	}
}

// TestStreamingIsFlat sends a file much larger than what the server may hold.
func TestStreamingIsFlat(t *testing.T) {
	const size = 256 << 20
	h := newHarness(t)
	h.service.add("done", job.Done).outputs["output"] = make([]byte, size) // never touched
	h.service.body = func(part job.Range) io.ReadCloser { return io.NopCloser(io.LimitReader(endless{}, part.Length)) }
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	response, err := h.client.Get(h.url + "/jobs/done/result")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes were allocated to send %d", grown, size)
	}
}

func TestClientThatLeavesADownload(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done).outputs["output"] = make([]byte, 1<<30)
	h.service.body = func(part job.Range) io.ReadCloser { return io.NopCloser(io.LimitReader(endless{}, part.Length)) }
	response, err := h.client.Get(h.url + "/jobs/done/result")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, response.Body, 1000); err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	// The harness checks at its end that the server has closed the file.
}

// TestConditionsAgainstNetHTTP compares answers with those of
// http.ServeContent, which knows RFC 9110 too.
func TestConditionsAgainstNetHTTP(t *testing.T) {
	h := newHarness(t)
	content := []byte("0123456789")
	h.service.add("done", job.Done).outputs["f.txt"] = content
	reference := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "f.txt", modified, bytes.NewReader(content))
	})
	const before, exact, after = "Sun, 22 Nov 2026 10:08:03 GMT", "Sun, 22 Nov 2026 10:08:04 GMT", "Sun, 22 Nov 2026 10:08:05 GMT"
	tags := []string{"", `"v1"`, `"v2"`, `W/"v1"`, "*", `"v0", W/"v1"`, `"a,b","v1"`, "nonsense", `"v1`}
	dates := []string{"", before, exact, after, "nonsense"}
	ranges := []string{"", "bytes=0-0", "bytes=2-5", "bytes=5-", "bytes=-3", "bytes=-30", "bytes=0-99", "bytes=9-9", "bytes=10-", "bytes=10-20"}
	var cases [][]string
	add := func(headers ...string) { cases = append(cases, headers) }
	for _, byRange := range ranges {
		for _, a := range tags {
			add("Range", byRange, "If-Match", a)
			add("Range", byRange, "If-None-Match", a)
			for _, b := range tags {
				add("Range", byRange, "If-Match", a, "If-None-Match", b)
			}
			for _, date := range dates {
				add("Range", byRange, "If-Match", a, "If-Unmodified-Since", date)
				add("Range", byRange, "If-None-Match", a, "If-Modified-Since", date)
			}
		}
		for _, a := range append(dates, `"v1"`, `"v2"`, `W/"v1"`) {
			add("Range", byRange, "If-Range", a)
			add("Range", byRange, "If-Range", a, "If-None-Match", `"v1"`)
		}
		for _, a := range dates {
			for _, b := range dates {
				add("Range", byRange, "If-Modified-Since", a, "If-Unmodified-Since", b)
			}
		}
	}
	for _, headers := range cases {
		var set []string
		for i := 0; i < len(headers); i += 2 {
			if headers[i+1] != "" {
				set = append(set, headers[i:i+2]...)
			}
		}
		got, want := serveBoth(h, "/jobs/done/result/f.txt", reference, set)
		if got.status != want.status || got.header.Get("Content-Range") != want.header.Get("Content-Range") {
			t.Errorf("%q: %d %q, net/http answers %d %q", set, got.status, got.header.Get("Content-Range"), want.status, want.header.Get("Content-Range"))
		}
		if want.status < 300 && got.body != want.body {
			t.Errorf("%q: %q, net/http answers %q", set, got.body, want.body)
		}
		if got.status == 304 && (got.header.Get("Etag") != `"v1"` || got.body != "") {
			t.Errorf("%q: 304 with %v %q", set, got.header, got.body)
		}
	}
	t.Logf("%d combinations", len(cases))
}

// TestRangesThatAreIgnored goes beyond net/http, which answers some with 416 or
// several parts.
func TestRangesThatAreIgnored(t *testing.T) {
	h := newHarness(t)
	h.service.add("done", job.Done).outputs["f"] = []byte("0123456789")
	for _, header := range []string{
		"bytes=0-1,3-4", "bytes=0-1,", "items=0-1", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-2", "bytes=+1-2", "bytes=1--2", "bytes=0x1-2", "0-1",
	} {
		if got := h.get("/jobs/done/result/f", "Range", header); got.status != 200 || got.body != "0123456789" || got.header.Get("Content-Range") != "" {
			t.Errorf("%s: %d %q", header, got.status, got.body)
		}
	}
	for header, want := range map[string]string{
		"BYTES=2-3": "23", "bytes = 2-3": "23", "bytes=2-99999999999999999999": "23456789", "bytes=-99999999999999999999": "0123456789",
		"bytes=0-9223372036854775807": "0123456789", "bytes=0-9223372036854775806": "0123456789",
	} {
		if got := h.get("/jobs/done/result/f", "Range", header); got.status != 206 || got.body != want {
			t.Errorf("%s: %d %q, want %q", header, got.status, got.body, want)
		}
	}
	opened := h.service.opened.Load()
	if got := h.get("/jobs/done/result/f", "Range", "bytes=2-3", "If-Range", `"v1"`, "If-None-Match", `"v2"`); got.status != 206 || h.service.opened.Load() != opened+1 {
		t.Errorf("%d, storage was asked %d times", got.status, h.service.opened.Load()-opened)
	}
	for _, header := range []string{"bytes=-0", "bytes=10-", "bytes=99999999999999999999-"} {
		if got := h.get("/jobs/done/result/f", "Range", header); got.status != 416 || got.header.Get("Content-Range") != "bytes */10" {
			t.Errorf("%s: %d %q", header, got.status, got.header.Get("Content-Range"))
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, seed := range []string{"bytes=0-1", "bytes=-1", "bytes=5-", "bytes=1-0", "bytes=0-1,2-3", "bytes=-0", "bytes=9223372036854775807-9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		part, unmet := parseRange(header)
		switch {
		case part == nil:
		case unmet:
			t.Errorf("%q is %+v and cannot be met", header, *part)
		case part.Offset >= 0 && part.Length == 0 || part.Length < -1:
			t.Errorf("%q is %+v", header, *part)
		case part.Offset < 0 && part.Length != -1:
			t.Errorf("%q is %+v, a suffix with a length", header, *part)
		case part.Length > 0 && part.Offset+part.Length-1 < part.Offset:
			t.Errorf("%q is %+v, which overflows", header, *part)
		}
	})
}

func FuzzEntityTags(f *testing.F) {
	f.Add(`"a", W/"b"`, `"b"`)
	f.Add(`"a,b`, `"a,b"`)
	f.Add(`*`, `"a"`)
	f.Add(`W/"a"`, `"a"`)
	f.Add(`"a" , ,"b,c",`, `"b,c"`)
	f.Add(`"a""b"`, `"b"`)
	f.Fuzz(func(t *testing.T, header, tag string) {
		if listed([]string{header}, tag, strong) && header != "*" && strings.TrimSpace(header) != "*" && !strings.Contains(header, tag) {
			t.Errorf("%q is found in %q", tag, header)
		}
	})
}

func FuzzFileName(f *testing.F) {
	for _, seed := range []string{"a/b", "..%2F..%2Fetc", "%2e%2e/x", "a%00", "a//b", "/", "%", "ü"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		name, ok := fileName(raw)
		if !ok {
			return
		}
		if cleaned := path.Join("/job/outputs", name); cleaned != "/job/outputs/"+name {
			t.Errorf("%q is %q, which is really %s", raw, name, cleaned)
		}
		if again, ok := fileName(url.PathEscape(name)); !ok || again != name {
			t.Errorf("%q is %q, which escaped is %q %v", raw, name, again, ok)
		}
	})
}
