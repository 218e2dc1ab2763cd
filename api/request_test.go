package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

func TestStartJobBodiesThatAreRefused(t *testing.T) {
	const ok = `"job_id":"a","model":{"name":"m","version":"v"}`
	for _, test := range []struct{ body, message string }{
		{``, "body: is empty; a JSON object is expected"},
		{" \n", "body: is empty; a JSON object is expected"},
		{`[]`, "body: must be an object, not a list"},
		{`"x"`, "body: must be an object, not a string"},
		{`12`, "body: must be an object, not a number"},
		{`true`, "body: must be an object, not a boolean"},
		{`null`, "body: cannot be null"},
		{`{`, "body: not valid JSON at byte 1: the name of a field, in double quotes, is expected"},
		{`{}`, "job_id: this field is required"},
		{`{"job_id"`, "body: not valid JSON at byte 9: a colon is expected"},
		{`{"job_id":`, "body: not valid JSON at byte 10: a value is expected"},
		{`{"job_id":"a`, "body: not valid JSON at byte 12: a string without its closing quote"},
		{`{"job_id":"a"`, "body: not valid JSON at byte 13: a comma or the end of the object is expected"},
		{`{"job_id":"a",}`, "body: not valid JSON at byte 14: the name of a field, in double quotes, is expected"},
		{`{job_id:"a"}`, "body: not valid JSON at byte 1: the name of a field, in double quotes, is expected"},
		{`{"job_id":'a'}`, "body: not valid JSON at byte 10: a value is expected"},
		{`{"job_id":nul}`, "body: not valid JSON at byte 10: a value is expected"},
		{`{` + ok + `} x`, "body: not valid JSON at byte 50: something follows the object"},
		{`{` + ok + `}{}`, "body: not valid JSON at byte 49: something follows the object"},
		{"\ufeff{" + ok + `}`, "body: not valid JSON at byte 0: a value is expected"},
		{"{\"job_id\":\"a\xff\"}", "body: not valid UTF-8"},
		{`{"payload":"\ud800"}`, "body: not valid JSON at byte 12: half a surrogate pair, which is no character"},
		{`{"payload":"\udc00\ud800"}`, "body: not valid JSON at byte 12: half a surrogate pair, which is no character"},
		{`{"payload":"\ud800\u0041"}`, "body: not valid JSON at byte 12: half a surrogate pair, which is no character"},
		{`{"payload":"\ud800\u00"}`, "body: not valid JSON at byte 12: half a surrogate pair, which is no character"},
		{`{"payload":"\u12g4"}`, `body: not valid JSON at byte 12: an incomplete \u escape`},
		{`{"payload":"\u+123"}`, `body: not valid JSON at byte 12: an incomplete \u escape`},
		{`{"payload":"\x"}`, "body: not valid JSON at byte 12: an unknown escape sequence"},
		{`{"payload":"\`, "body: not valid JSON at byte 12: an incomplete escape sequence"},
		{"{\"payload\":\"a\nb\"}", "body: not valid JSON at byte 13: a control character in a string"},

		{`{"model":{"name":"m","version":"v"}}`, "job_id: this field is required"},
		{`{"job_id":"a"}`, "model: this field is required"},
		{`{"job_id":"a","model":{}}`, "model.name: this field is required"},
		{`{"job_id":"a","model":{"version":"v"}}`, "model.name: this field is required"},
		{`{"job_id":"a","model":{"name":"m"}}`, "model.version: this field is required"},
		{`{"job_id":null}`, "job_id: cannot be null"},
		{`{"model":null}`, "model: cannot be null"},
		{`{"model":{"name":null}}`, "model.name: cannot be null"},
		{`{"model":{"version":null}}`, "model.version: cannot be null"},
		{`{"job_id":1}`, "job_id: must be a string, not a number"},
		{`{"job_id":["a"]}`, "job_id: must be a string, not a list"},
		{`{"job_id":{}}`, "job_id: must be a string, not an object"},
		{`{"job_id":true}`, "job_id: must be a string, not a boolean"},
		{`{"model":"m:v"}`, "model: must be an object, not a string"},
		{`{"model":{"version":2}}`, "model.version: must be a string, not a number"},
		{`{"payload":{}}`, "payload: must be a string, not an object"},
		{`{"payload":-1}`, "payload: must be a string, not a number"},
		{`{"sheep_id":false}`, "sheep_id: must be a string, not a boolean"},
		{`{"priority":"1"}`, "priority: must be a whole number, not a string"},
		{`{"priority":1.5}`, "priority: must be a whole number"},
		{`{"priority":1e3}`, "priority: must be a whole number"},
		{`{"priority":-}`, "priority: must be a whole number"},
		{`{"priority":01}`, "body: not valid JSON at byte 12: a number with a leading zero"},
		{`{"priority":-01}`, "body: not valid JSON at byte 12: a number with a leading zero"},
		{`{"priority":2147483648}`, "priority: must lie between -2147483648 and 2147483647"},
		{`{"colour":1}`, "colour: this field is not known"},
		{`{"Job_ID":"a"}`, "Job_ID: this field is not known"},
		{`{"":1}`, ": this field is not known"},
		{`{"model":{"size":1}}`, "model.size: this field is not known"},
		{`{"model.name":"x"}`, "model.name: this field is not known"},
		{`{"` + strings.Repeat("ü", 100) + `":1}`, strings.Repeat("ü", 50) + "…: this field is not known"},
		{`{"job_id":"a","job_id":"a"}`, "job_id: this field is given twice"},
		{`{"job_id":"a","job\u005fid":"a"}`, "job_id: this field is given twice"},
		{`{"payload":null,"payload":"x"}`, "payload: this field is given twice"},
		{`{"sheep_id":"a","sheep_id":null}`, "sheep_id: this field is given twice"},
		{`{"priority":1,"priority":null}`, "priority: this field is given twice"},
		{`{"model":{"name":"a","name":"b"}}`, "model.name: this field is given twice"},
		{`{"model":{"name":"m","version":"v"},"model":{"name":"m","version":"v"}}`, "model: this field is given twice"},

		{`{"retries":-1,` + ok + `}`, "retries: must lie between 0 and 100"},
		{`{"retries":101,` + ok + `}`, "retries: must lie between 0 and 100"},
		{`{"retries":"2"}`, "retries: must be a whole number, not a string"},
		{`{"retries":0.5}`, "retries: must be a whole number"},
		{`{"retries":1,"retries":null}`, "retries: this field is given twice"},
		{`{"retry_pause":-1,` + ok + `}`, "retry_pause: must lie between 0 and a year"},
		{`{"retry_pause":"-1s",` + ok + `}`, "retry_pause: must lie between 0 and a year"},
		{`{"wait_timeout":"366d",` + ok + `}`, "wait_timeout: must lie between 0 and a year"},
		{`{"wait_timeout":1e400,` + ok + `}`, "wait_timeout: must lie between 0 and a year"},
		{`{"load_timeout":"soon"}`, "load_timeout: must be a number of seconds, or a duration such as 30s, 1h30m or 7d"},
		{`{"load_timeout":"30"}`, "load_timeout: must be a number of seconds, or a duration such as 30s, 1h30m or 7d"},
		{`{"load_timeout":""}`, "load_timeout: must be a number of seconds, or a duration such as 30s, 1h30m or 7d"},
		{`{"run_timeout":1.}`, "run_timeout: must be a number of seconds, or a duration such as 30s, 1h30m or 7d"},
		{`{"run_timeout":-}`, "run_timeout: must be a number of seconds, or a duration such as 30s, 1h30m or 7d"},
		{`{"run_timeout":030}`, "body: not valid JSON at byte 15: a number with a leading zero"},
		{`{"run_timeout":true}`, "run_timeout: must be a number of seconds or a duration, not a boolean"},
		{`{"run_timeout":{}}`, "run_timeout: must be a number of seconds or a duration, not an object"},
		{`{"run_timeout":1,"run_timeout":2}`, "run_timeout: this field is given twice"},
		{`{"not_before":0}`, "not_before: must be a string, not a number"},
		{`{"not_before":"tomorrow"}`, "not_before: must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"},
		{`{"not_before":"2099-01-01T00:00:00"}`, "not_before: must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"},
		{`{"not_before":"0001-01-01T00:00:00Z"}`, "not_before: must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"},
		{`{"deadline":"9999-12-31T23:59:59-01:00"}`, "deadline: must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"},
		{`{"deadline":"2099-02-30T00:00:00Z"}`, "deadline: must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"},
		{`{"deadline":"2099-01-01T00:00:00Z","not_before":"2099-01-01T01:00:00+01:00",` + ok + `}`, "deadline: must be later than not_before"},
		{`{"timeout":1}`, "timeout: this field is not known"},

		{`{"job_id":"","model":{"name":"m","version":"v"}}`, "job_id: is empty"},
		{`{"job_id":"a/b","model":{"name":"m","version":"v"}}`, "job_id: \"a/b\" has '/' at position 2; an id is made of letters, digits, '.', '_' and '-' and begins with a letter or digit"},
		{`{"job_id":"a","model":{"name":"","version":"v"}}`, "model.name: is empty"},
		{`{"job_id":"a","model":{"name":"../outside","version":"v"}}`, `model.name: "../outside" is not a relative path without empty, "." and ".." elements`},
		{`{"job_id":"a","model":{"name":"m","version":"../v"}}`, `model.version: "../v" is not a relative path without empty, "." and ".." elements`},
	} {
		_, err := decodeStartJob([]byte(test.body))
		var invalid *job.Invalid
		if !errors.As(err, &invalid) || err.Error() != test.message {
			t.Errorf("%s: %v\nwant %s", test.body, err, test.message)
		}
	}
}

func TestPayloadIsKeptByteForByte(t *testing.T) {
	for _, payload := range []string{"x", "naïve ☃ 🐑", "\x00\x01\"\\/\b\f\n\r\t\x7f\u2028", strings.Repeat("žluťoučký kůň ", 10_000)} {
		text, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		escaped := asciiOnly(payload)
		for _, form := range []string{string(text), escaped} {
			request, err := decodeStartJob([]byte(`{"payload":` + form + `,"model":{"version":"","name":"a/b"},"job_id":"A.1"}`))
			if err != nil {
				t.Errorf("%.60q: %v", form, err)
				continue
			}
			if string(request.Payload) != payload || request.ID != "A.1" || request.Model != (job.Model{Name: "a/b"}) {
				t.Errorf("%.60q: got %+v", payload, request)
			}
		}
	}
	for _, none := range []string{``, `,"payload":null`, `,"payload":""`} {
		request, err := decodeStartJob([]byte(`{"job_id":"a","model":{"name":"m","version":"v"},"priority":null,"sheep_id":null` + none + `}`))
		if err != nil || request.Payload != nil || request.Sheep != "" || request.Priority != 0 {
			t.Errorf("%q: %+v %v", none, request, err)
		}
	}
}

func TestLimitsOfARequest(t *testing.T) {
	second := func(seconds float64) *time.Duration { return new(time.Duration(seconds * float64(time.Second))) }
	for fields, want := range map[string]job.Request{
		``: {},
		`,"retries":null,"retry_pause":null,"wait_timeout":null,"load_timeout":null,"run_timeout":null,"not_before":null,"deadline":null`: {},
		`,"retries":0,"run_timeout":0,"wait_timeout":"0s"`: {Limits: job.Limits{Retries: new(0), RunTimeout: second(0), WaitTimeout: second(0)}},
		`,"retries":100,"retry_pause":"1m30s","wait_timeout":"7d","load_timeout":90,"run_timeout":0.25`: {Limits: job.Limits{
			Retries: new(100), RetryPause: second(90), WaitTimeout: second(7 * 86400), LoadTimeout: second(90), RunTimeout: second(0.25)}},
		`,"load_timeout":1e-300,"run_timeout":31536000`: {Limits: job.Limits{LoadTimeout: new(time.Duration(1)), RunTimeout: second(365 * 86400)}},
		`,"not_before":"2099-01-02T03:04:05.1234567+01:00","deadline":"2099-01-02T03:04:05Z"`: {
			NotBefore: time.Date(2099, 1, 2, 2, 4, 5, 123456000, time.UTC), Deadline: time.Date(2099, 1, 2, 3, 4, 5, 0, time.UTC)},
	} {
		want.ID, want.Model = "a", job.Model{Name: "m", Version: "v"}
		request, err := decodeStartJob([]byte(`{"job_id":"a","model":{"name":"m","version":"v"}` + fields + `}`))
		if err != nil || !reflect.DeepEqual(request, want) {
			t.Errorf("%s: %+v, %v", fields, request, err)
		}
	}

	h := newHarness(t)
	got := h.do("POST", "/start-job", `{"job_id":"a","model":{"name":"m","version":"v"},"payload":"x","deadline":"2020-01-01T00:00:00Z"}`)
	if got.status != 400 || !strings.Contains(got.body, "deadline: has passed already; it is 20") || len(h.service.submitted) > 0 {
		t.Errorf("a deadline that has passed: %d %s", got.status, got.body)
	}
	h.expect(h.do("POST", "/start-job", `{"job_id":"a","model":{"name":"m","version":"v"},"payload":"x","deadline":"2099-01-01T00:00:00Z","run_timeout":"1h","retries":3}`), 200, `{"success": true}`)
	if len(h.service.submitted) != 1 || *h.service.submitted[0].Limits.Retries != 3 || h.service.submitted[0].Deadline.Year() != 2099 {
		t.Errorf("submitted %+v", h.service.submitted)
	}
}

func TestReadBody(t *testing.T) {
	claims.Hold(t, "C9")
	all := semaphore.NewWeighted(1 << 40)
	room := &lease{of: all}
	for _, size := range []int{0, 1, 511, 512, 513, trusted - 1, trusted, trusted + 1, 3*trusted + 7} {
		content := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		for _, announced := range []int64{int64(size), -1} {
			request := httptest.NewRequest("POST", "/", bytes.NewReader(content))
			request.ContentLength = announced
			body, err := readBody(httptest.NewRecorder(), request, int64(size), room)
			if err != nil || !bytes.Equal(body, content) {
				t.Errorf("%d bytes, announced as %d: got %d, %v", size, announced, len(body), err)
			}
			request = httptest.NewRequest("POST", "/", bytes.NewReader(append(content, 'x')))
			request.ContentLength = announced
			if announced >= 0 {
				request.ContentLength++
			}
			var tooLarge *http.MaxBytesError
			if _, err := readBody(httptest.NewRecorder(), request, int64(size), room); !errors.As(err, &tooLarge) {
				t.Errorf("one more than %d bytes, announced as %d: %v", size, announced, err)
			}
		}
	}
	request := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("{"), failing{io.ErrUnexpectedEOF}))
	var invalid *job.Invalid
	if _, err := readBody(httptest.NewRecorder(), request, 100, room); !errors.As(err, &invalid) {
		t.Errorf("a body that ends early: %v", err)
	}
	room.giveBack()
	if !all.TryAcquire(1 << 40) {
		t.Error("not all memory was given back")
	}
}

// TestBodiesTogether sends more at once than there is memory for.
func TestBodiesTogether(t *testing.T) {
	const most = 1 << 20
	h := newHarness(t, func(c *Config) { c.MaxBody, c.BodyMemory = most, 1 })
	send := func(id string) reply {
		body := `{"job_id":"` + id + `","model":{"name":"m","version":"v"},"payload":"`
		return h.do("POST", "/start-job", body+strings.Repeat("x", most-2-len(body))+`"}`)
	}
	arrived, goOn := make(chan struct{}), make(chan struct{})
	h.service.hold = func() {
		arrived <- struct{}{}
		<-goOn
	}
	var held sync.WaitGroup
	for _, id := range []string{"first", "second"} {
		held.Go(func() {
			if got := send(id); got.status != 200 {
				t.Errorf("a body that there is room for: %d %s", got.status, got.body)
			}
		})
		receive(t, arrived, "a body that there is room for does not arrive")
	}
	if got := send("third"); got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "at once") {
		t.Errorf("a body that there is no room for: %d %s", got.status, got.body)
	}
	go func() { <-arrived }()
	held.Go(func() {
		if got := h.do("POST", "/start-job", `{"job_id":"small","model":{"name":"m","version":"v"},"payload":"x"}`); got.status != 200 {
			t.Errorf("a small body beside large ones: %d %s", got.status, got.body)
		}
	})
	close(goOn)
	held.Wait()
	h.service.hold = nil
	if got := send("third"); got.status != 200 {
		t.Errorf("once there is room again: %d %s", got.status, got.body)
	}
}

// TestBodyGrows reads a body of unknown length with hardly enough memory.
func TestBodyGrows(t *testing.T) {
	const size = 100_000
	for memory, want := range map[int64]error{2*size + 2048: nil, size: errNoRoom} {
		all := semaphore.NewWeighted(memory)
		room := &lease{of: all}
		request := httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, size)))
		request.ContentLength = -1
		body, err := readBody(httptest.NewRecorder(), request, size, room)
		if !errors.Is(err, want) || want == nil && (len(body) != size || room.taken != int64(cap(body))) {
			t.Errorf("%d bytes with memory for %d: %d read, %d taken, %v", size, memory, len(body), room.taken, err)
		}
		room.giveBack()
		if !all.TryAcquire(memory) {
			t.Errorf("with memory for %d: not all was given back", memory)
		}
	}
}

// asciiOnly writes a JSON string as Python's json module does.
func asciiOnly(s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, r := range s {
		if r >= ' ' && r < 0x7f && r != '"' && r != '\\' {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	out.WriteByte('"')
	return out.String()
}

// FuzzStartJob compares the decoder with encoding/json: what it accepts means
// the same there, and what it refuses is refused with the client's own fault.
func FuzzStartJob(f *testing.F) {
	for _, seed := range []string{
		start, `{"job_id":"a","model":{"name":"m","version":""},"payload":"\u00e9\ud83d\udc11","sheep_id":"s","priority":-5}`,
		`{"job_id":"a","model":{"name":"m","version":"v"},"payload":null}`, `{"job_id":"a"`, `{"priority":1e5}`, "\xff",
		`{"job_id":"a","model":{"name":"m","version":"v"},"retries":3,"retry_pause":"1m","wait_timeout":1.5e2,"load_timeout":null,"run_timeout":0,"not_before":"2099-01-02T03:04:05.5+01:00","deadline":"2099-01-02T03:04:05Z"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		original := bytes.Clone(body)
		request, err := decodeStartJob(body)
		if err != nil {
			var invalid *job.Invalid
			var sheep *job.UnknownSheep
			if !errors.As(err, &invalid) && !errors.As(err, &sheep) {
				t.Fatalf("%q: %v is not the client's fault", original, err)
			}
			if !utf8.ValidString(err.Error()) {
				t.Fatalf("%q: the message %q is not UTF-8", original, err)
			}
			return
		}
		var want struct {
			ID    *string `json:"job_id"`
			Model *struct {
				Name    *string `json:"name"`
				Version *string `json:"version"`
			} `json:"model"`
			Payload  string `json:"payload"`
			Sheep    string `json:"sheep_id"`
			Priority int    `json:"priority"`

			Retries     *int       `json:"retries"`
			RetryPause  any        `json:"retry_pause"`
			WaitTimeout any        `json:"wait_timeout"`
			LoadTimeout any        `json:"load_timeout"`
			RunTimeout  any        `json:"run_timeout"`
			NotBefore   *time.Time `json:"not_before"`
			Deadline    *time.Time `json:"deadline"`
		}
		decoder := json.NewDecoder(bytes.NewReader(original))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&want); err != nil {
			t.Fatalf("%q is accepted, encoding/json says %v", original, err)
		}
		if _, err := decoder.Token(); err != io.EOF {
			t.Fatalf("%q is accepted with something behind it", original)
		}
		if string(request.ID) != *want.ID || request.Model.Name != *want.Model.Name || request.Model.Version != *want.Model.Version ||
			string(request.Payload) != want.Payload || request.Sheep != want.Sheep || request.Priority != want.Priority {
			t.Fatalf("%q: %+v, encoding/json has %+v", original, request, want)
		}
		for _, c := range []struct {
			got  *time.Duration
			want any
		}{
			{request.Limits.RetryPause, want.RetryPause}, {request.Limits.WaitTimeout, want.WaitTimeout},
			{request.Limits.LoadTimeout, want.LoadTimeout}, {request.Limits.RunTimeout, want.RunTimeout},
		} {
			if (c.got == nil) != (c.want == nil) {
				t.Fatalf("%q: a limit is %v, encoding/json has %v", original, c.got, c.want)
			}
			if seconds, ok := c.want.(float64); ok && math.Abs(c.got.Seconds()-seconds) > 1e-6*(1+seconds) {
				t.Fatalf("%q: a limit is %v, encoding/json has %v", original, *c.got, seconds)
			}
		}
		for _, c := range []struct {
			got  time.Time
			want *time.Time
		}{{request.NotBefore, want.NotBefore}, {request.Deadline, want.Deadline}} {
			if c.got.IsZero() != (c.want == nil) || c.want != nil && !c.got.Equal(c.want.Truncate(time.Microsecond)) {
				t.Fatalf("%q: a time is %v, encoding/json has %v", original, c.got, c.want)
			}
		}
	})
}

// FuzzPayload sends any text as a payload and expects it back.
func FuzzPayload(f *testing.F) {
	for _, payload := range []string{"naïve ☃ 🐑 \x00", "", "\\\"/\b\f\n\r\t", "\u2028\u2029\ufeff\ufffd", "\U0010ffff\u007f", `\ud83d\udc11`, "<script>&amp;"} {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		if !utf8.ValidString(payload) {
			return
		}
		text, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{string(text), asciiOnly(payload)} {
			request, err := decodeStartJob([]byte(`{"job_id":"a","model":{"name":"m","version":"v"},"payload":` + form + `}`))
			if err != nil || string(request.Payload) != payload {
				t.Fatalf("%q as %s: %q, %v", payload, form, request.Payload, err)
			}
		}
	})
}

func TestKeepField(t *testing.T) {
	for text, want := range map[string]string{
		`"7d"`: "168h0m0s", `90`: "1m30s", `0`: "0s", `null`: "<nil>",
		`-1`: "keep: must be from 0, which is indefinitely, to a hundred years", `"40000d"`: "keep: must be from 0, which is indefinitely, to a hundred years",
		`"week"`: "keep: must be a number of seconds, or a duration such as 30s, 1h30m or 7d",
	} {
		request, err := decodeStartJob([]byte(`{"job_id": "x", "model": {"name": "m", "version": ""}, "keep": ` + text + `}`))
		got := "<nil>"
		if request.Keep != nil {
			got = request.Keep.String()
		}
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("keep %s: %s, want %s", text, got, want)
		}
	}
}
