// Package archive writes the records of a ledger as JSON lines and reads them again, to move
// jobs from one ledger to another, or to read them with tools for JSON.
//
// The first line is {"shepherd_ledger": 1}, where 1 is the version of the format.
// Then each line is a record with its attempts, oldest first. The last line is
// {"records": N}, by which a reader knows that nothing is missing. Times are as in
// RFC 3339, in UTC, with microseconds; durations are numbers of seconds; zero and empty
// values are left out. Unknown fields are refused, so that no value of an archive of a newer
// shepherd is lost.
package archive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// version is that of the format.
const version = 1

// maxLine is the largest line that is read, in bytes: a record has a failure and at most a
// few hundred attempts.
const maxLine = 4 << 20

// How many records are read from a ledger, and restored in one, at a time.
const (
	page  = 500
	batch = 200
)

// header is the first line, trailer the last.
type header struct {
	Version int `json:"shepherd_ledger"`
}

type trailer struct {
	Records *int `json:"records"`
}

// Source is the part of a ledger from which records are read.
type Source interface {
	List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error)
	Get(ctx context.Context, id job.ID) (job.Record, error)
	Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error)
	JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error)
}

// Write writes all records of the source and returns their number. The source should not
// change meanwhile, or jobs may be missing.
func Write(ctx context.Context, w io.Writer, from Source) (int, error) {
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	if err := encoder.Encode(header{version}); err != nil {
		return 0, fmt.Errorf("write the archive: %w", err)
	}
	records := 0
	err := each(ctx, from, func(s ledger.Saved) error {
		if err := encoder.Encode(encode(s)); err != nil {
			return fmt.Errorf("write the archive: %w", err)
		}
		records++
		return nil
	})
	if err != nil {
		return records, err
	}
	err = encoder.Encode(trailer{&records})
	if err := errors.Join(err, out.Flush()); err != nil {
		return records, fmt.Errorf("write the archive: %w", err)
	}
	return records, nil
}

// Copy restores all records of a source in a ledger, and returns their number. Neither
// should be changed meanwhile. After an error the ledger has the records restored before
// it.
func Copy(ctx context.Context, into ledger.Restorer, from Source) (int, error) {
	b := batcher{into: into}
	err := each(ctx, from, func(s ledger.Saved) error { return b.add(ctx, s) })
	if err == nil {
		err = b.flush(ctx)
	}
	return b.restored, err
}

// each calls do with every record of a source, in order.
func each(ctx context.Context, from Source, do func(ledger.Saved) error) error {
	for cursor := int64(0); ; {
		listed, next, err := from.List(ctx, ledger.Filter{}, cursor, page)
		if err != nil {
			return err
		}
		runs := make([]ledger.JobRun, len(listed))
		for i, rec := range listed {
			runs[i] = ledger.JobRun{Job: rec.ID, Run: rec.Run}
		}
		webhooks, err := from.JobWebhooks(ctx, runs)
		if err != nil {
			return err
		}
		for i, rec := range listed {
			if rec.Failure != nil { // a list leaves the traceback out
				if rec, err = from.Get(ctx, rec.ID); err != nil {
					return err
				}
			}
			attempts, err := from.Attempts(ctx, rec.ID)
			if err != nil {
				return err
			}
			rec.Webhook = webhooks[runs[i]]
			if err := do(ledger.Saved{Record: rec, Attempts: attempts}); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// batcher restores records in a ledger, several at a time.
type batcher struct {
	into     ledger.Restorer
	pending  []ledger.Saved
	restored int
}

func (b *batcher) add(ctx context.Context, s ledger.Saved) error {
	if b.pending = append(b.pending, s); len(b.pending) < batch {
		return nil
	}
	return b.flush(ctx)
}

func (b *batcher) flush(ctx context.Context) error {
	if len(b.pending) == 0 {
		return nil
	}
	if err := b.into.Restore(ctx, b.pending); err != nil {
		return err
	}
	b.restored += len(b.pending)
	b.pending = nil
	return nil
}

// Restore restores the records of an archive in a ledger, and returns their number. It
// reads the whole archive before it restores the first record, so that an archive that is
// damaged or cut off changes nothing: the error is then of class errdefs.ErrInvalidArgument
// and names the line. After an error of the ledger it has the records restored before it.
func Restore(ctx context.Context, r io.ReadSeeker, into ledger.Restorer) (int, error) {
	if err := Read(r, func(ledger.Saved) error { return nil }); err != nil {
		return 0, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the archive again: %w", err)
	}
	b := batcher{into: into}
	err := Read(r, func(s ledger.Saved) error { return b.add(ctx, s) })
	if err == nil {
		err = b.flush(ctx)
	}
	return b.restored, err
}

// Read calls each with every record, in order. It returns an error of each as it is. The
// error of a file that is not an archive, or is damaged or cut off, is of class
// errdefs.ErrInvalidArgument and names the line.
func Read(r io.Reader, each func(ledger.Saved) error) error {
	in := bufio.NewReader(r)
	records := 0
	for line := 1; ; line++ {
		text, err := readLine(in)
		switch {
		case errors.Is(err, io.EOF) && line == 1:
			return bad(line, errors.New("the archive is empty"))
		case errors.Is(err, io.EOF):
			return bad(line, fmt.Errorf("the archive is cut off: its last line is missing, after %d records", records))
		case err != nil:
			return bad(line, err)
		}
		if line == 1 {
			var h header
			if err := decode(text, &h); err != nil || h.Version == 0 {
				return bad(line, errors.New(`this is no archive of a ledger: its first line is not {"shepherd_ledger": 1}`))
			}
			if h.Version != version {
				return bad(line, fmt.Errorf("the archive has version %d, and this shepherd reads version %d: use the shepherd that wrote it, or a newer one", h.Version, version))
			}
			continue
		}
		var end trailer
		if decode(text, &end) == nil && end.Records != nil {
			if *end.Records != records {
				return bad(line, fmt.Errorf("the archive had %d records when it was written and has %d", *end.Records, records))
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				return bad(line+1, errors.New("something follows the archive's last line"))
			}
			return nil
		}
		var s savedJSON
		if err := decode(text, &s); err != nil {
			return bad(line, err)
		}
		saved, err := s.decode()
		if err != nil {
			return bad(line, err)
		}
		if err := each(saved); err != nil {
			return err
		}
		records++
	}
}

// readLine reads a line without its newline. A last line without a newline is io.EOF.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, fmt.Errorf("the line is longer than %d bytes", maxLine)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil, err
		}
		return bytes.TrimSuffix(line, []byte("\n")), nil
	}
}

// decode decodes one JSON value and refuses unknown fields.
func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the line's value")
	}
	return nil
}

func bad(line int, err error) error {
	return fmt.Errorf("line %d: %w: %w", line, err, errdefs.ErrInvalidArgument)
}

// seconds is a duration as a number of seconds.
type seconds float64

func inSeconds(d time.Duration) seconds { return seconds(d.Seconds()) }

func (s seconds) duration() time.Duration {
	return time.Duration(float64(s) * float64(time.Second)).Round(time.Microsecond)
}

// instant is a time, zero for none.
type instant struct{ time.Time }

func (i instant) MarshalJSON() ([]byte, error) {
	return json.Marshal(i.Time.UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
}

// The range of times that every ledger can keep.
var (
	minTime = time.UnixMicro(1)
	maxTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

func (i *instant) UnmarshalJSON(text []byte) error {
	var t time.Time
	if err := json.Unmarshal(text, &t); err != nil {
		return err
	}
	if t.Before(minTime) || t.After(maxTime) {
		return fmt.Errorf("the time %s is not between 1970 and 9999", t)
	}
	i.Time = t.UTC().Truncate(time.Microsecond)
	return nil
}
