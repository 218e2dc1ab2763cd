package storage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// original is a job_status.json as the original wrote it.
func original(traceback string) io.Reader {
	return io.MultiReader(
		strings.NewReader(`{"status": "failed", "error_details": {"message": "no", "exception_type": "E", "exception_traceback": "`),
		strings.NewReader(traceback),
		strings.NewReader(`"}, "model": {"name": "m", "version": "v"}, "enqueued_at": "2026-01-02T03:04:05.000006", "processing_started_at": null, "finished_at": "2026-01-02T03:04:06.000000"}`))
}

func TestReadStatus(t *testing.T) {
	short := strings.Repeat("x", 3*maxText)
	for name, c := range map[string]struct{ written, begins, ends string }{
		"None":     {"", "", ""},
		"Whole":    {short, short, ""},
		"Long":     {"first" + strings.Repeat("x", 5<<20) + "last", "firstx", "xlast"},
		"Escapes":  {`first\"` + strings.Repeat(`\u0041\n\\`, 1<<20) + `\\last`, "first\"A\n\\", `\\last`},
		"Runes":    {"first" + strings.Repeat("ěé🐑", 1<<20) + "last", "firstěé🐑", "🐑last"},
		"AllRunes": {strings.Repeat("🐑", 4<<20), "🐑🐑", "🐑🐑"},
	} {
		t.Run(name, func(t *testing.T) {
			status, err := ReadStatus(original(c.written))
			if err != nil {
				t.Fatal(err)
			}
			got := status.Failure.Traceback
			if !strings.HasPrefix(got, c.begins) || !strings.HasSuffix(got, c.ends) || len(got) > 4*maxText {
				t.Errorf("the traceback is %d bytes, %.20q…%q", len(got), got, got[max(0, len(got)-20):])
			}
			if cut := strings.Contains(got, "\n[…]\n"); cut != (len(c.written) > 3*maxText) || strings.ContainsRune(got, '\uFFFD') {
				t.Errorf("%d bytes were cut: %v, or inside a character", len(c.written), cut)
			}
			want := job.Status{
				State: job.Failed, Model: job.Model{Name: "m", Version: "v"}, Failure: &job.Failure{Message: "no", Type: "E", Traceback: got},
				EnqueuedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), FinishedAt: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
			}
			if fmt.Sprintf("%+v", *status.Failure) != fmt.Sprintf("%+v", *want.Failure) {
				t.Errorf("failure %+v", status.Failure)
			}
			status.Failure, want.Failure = nil, nil
			if status != want {
				t.Errorf("status %+v, want %+v", status, want)
			}
		})
	}

	// What Clip keeps comes back whole, even where every character is escaped.
	failure := (&job.Failure{Message: strings.Repeat("\x01", 1<<20), Traceback: strings.Repeat("\x02", 1<<20)}).Clip()
	data, err := job.JSON(job.Status{State: job.Failed, Failure: failure})
	if err != nil {
		t.Fatal(err)
	}
	status, err := ReadStatus(strings.NewReader(string(data)))
	if err != nil || *status.Failure != *failure {
		t.Errorf("a clipped failure comes back changed: %v", err)
	}
}

func TestReadBadStatus(t *testing.T) {
	for name, r := range map[string]io.Reader{
		"Empty":          strings.NewReader(""),
		"Half":           strings.NewReader(`{"status": "do`),
		"HalfEscape":     strings.NewReader(`{"status": "do\u00`),
		"NoStatus":       strings.NewReader(`{"status": "unheard-of"}`),
		"TextTooLarge":   original(strings.Repeat("x", MaxStatus)),
		"BlanksTooLarge": strings.NewReader(strings.Repeat(" ", MaxStatus) + `{"status": "done"}`),
		"ManyTexts":      strings.NewReader(`{"status": "done", "x": [` + strings.Repeat(`"x",`, maxShortStatus/4) + `"x"]}`),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadStatus(r); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), job.StatusFile) {
				t.Errorf("error %v", err)
			}
		})
	}
	torn := errors.New("torn")
	if _, err := ReadStatus(io.MultiReader(strings.NewReader(`{"status": "do`), iotest.ErrReader(torn))); !errors.Is(err, torn) || errdefs.IsDataLoss(err) {
		t.Errorf("an error of the reader is %v", err)
	}
}

// FuzzShortJSON checks that JSON stays the same JSON where no string is long.
func FuzzShortJSON(f *testing.F) {
	for _, seed := range []string{`{"a": "b\"\\\u0041"}`, `"\ud83d\udc11"`, "\"\xff\xfe\"", `"\`, `{"status":"done"}`, `"é`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := shortJSON(bufio.NewReader(strings.NewReader(text)))
		if err != nil || string(got) != text {
			t.Fatalf("%q became %q, %v", text, got, err)
		}
	})
}
