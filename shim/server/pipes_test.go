package server

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relay is a pipe of a runner that another process copies to a FIFO, and an output that reads
// that FIFO.
type relay struct {
	runner, pipe *os.File // the runner's end, and the other one
	fifo         *os.File // the end that is written to
	marks        [2]*marks
	out          *output
	log          bytes.Buffer // read after out has settled, or ended
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{marks: [2]*marks{newMarks()}}
	var err error
	if r.pipe, r.runner, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	end, fifo, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.fifo = fifo
	r.out = &output{log: slog.New(slog.DiscardHandler), out: newTail(), err: newTail()}
	r.out.start(end, r.marks[0], &r.log, &r.out.out)
	t.Cleanup(func() {
		r.runner.Close()
		r.pipe.Close()
		r.fifo.Close()
		r.out.close()
	})
	return r
}

// copy copies part bytes at a time, with pauses.
func (r *relay) copy(part int) error {
	buffer := make([]byte, part)
	for {
		n, err := r.pipe.Read(buffer)
		time.Sleep(100 * time.Microsecond)
		if _, werr := r.fifo.Write(buffer[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
}

// When settle returns, what was written before it is in the log, and no mark, however the
// stream is cut.
func TestRunnerPipesSettle(t *testing.T) {
	for _, part := range []int{1, 7, 28, 29, 4096} {
		r := newRelay(t)
		copied := make(chan error, 1)
		go func() { copied <- r.copy(part) }()
		var want strings.Builder
		for i := range 20 {
			text := strings.Repeat("x\x00", i) + "line\n" + string(r.marks[0].text[:i])
			want.WriteString(text)
			if _, err := r.runner.WriteString(text); err != nil {
				t.Fatal(err)
			}
			runnerPipes{r.runner}.settle(r.marks, time.Now().Add(time.Minute))
			if got := r.log.String(); got != want.String() {
				t.Fatalf("parts of %d bytes: the log holds %q, want %q", part, got, want.String())
			}
		}
		r.runner.Close()
		if err := <-copied; err != io.EOF {
			t.Fatal(err)
		}
	}
}

// What looks like the beginning of a mark is logged when the stream ends.
func TestBeginningOfAMark(t *testing.T) {
	r := newRelay(t)
	runnerPipes{r.runner}.settle(r.marks, time.Now()) // nobody copies: the mark stays under way
	text := "line\n" + string(r.marks[0].text[:9])
	if _, err := r.fifo.WriteString(text); err != nil {
		t.Fatal(err)
	}
	r.fifo.Close()
	r.out.copying.Wait()
	if got := r.log.String(); got != text {
		t.Errorf("the log holds %q, want %q", got, text)
	}
}

// A full pipe delays a mark, which goes on once there is room; one that nobody copies or that
// has no reader does not keep settle waiting beyond its time.
func TestRunnerPipesThatDoNotSettle(t *testing.T) {
	r := newRelay(t)
	fd, full := int(r.runner.Fd()), 0 // Fd makes it blocking
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := unix.Write(fd, bytes.Repeat([]byte("x"), 4096))
		if err != nil {
			break
		}
		full += n
	}
	runnerPipes{r.runner}.settle(r.marks, time.Now().Add(5*time.Millisecond))
	copied := make(chan error, 1)
	go func() { copied <- r.copy(4096) }()
	runnerPipes{r.runner}.settle(r.marks, time.Now().Add(time.Minute))
	if got := r.log.String(); got != strings.Repeat("x", full) {
		t.Errorf("the log has %d bytes, want %d", len(got), full)
	}
	r.runner.Close()
	<-copied

	r = newRelay(t)
	runnerPipes{r.runner}.settle(r.marks, time.Now().Add(time.Millisecond))
	runnerPipes{r.runner}.settle(r.marks, time.Now().Add(time.Millisecond)) // the first mark is still under way
	r.pipe.Close()
	runnerPipes{r.runner, nil}.settle([2]*marks{newMarks()}, time.Now().Add(time.Hour))
	runnerPipes{nil, r.runner}.settle(r.marks, time.Now().Add(time.Hour))
}

// FuzzMarks cuts a stream with a mark in it into parts: the rest arrives, and nothing else.
func FuzzMarks(f *testing.F) {
	f.Add([]byte("before"), []byte("after"), uint8(3))
	f.Add([]byte("\x00"), []byte("\x00\x00"), uint8(1))
	f.Add([]byte{}, []byte{}, uint8(255))
	f.Fuzz(func(t *testing.T, before, after []byte, part uint8) {
		m := newMarks()
		m.awaited = make(chan struct{})
		arrived := m.awaited
		var got []byte
		marked := false
		for rest := bytes.Join([][]byte{before, m.text, after}, nil); len(rest) > 0; {
			n := min(int(part)+1, len(rest))
			text, found := m.take(rest[:n])
			if found && !bytes.HasPrefix(got, before) && !bytes.HasPrefix(append(bytes.Clone(got), text...), before) {
				t.Errorf("the mark is found before %q", before)
			}
			got, rest, marked = append(got, text...), rest[n:], marked || found
			if found {
				m.arrived()
			}
		}
		got = append(got, m.rest()...)
		select {
		case <-arrived:
		default:
			t.Error("the mark does not arrive")
		}
		if !marked || !bytes.Equal(got, append(bytes.Clone(before), after...)) {
			t.Errorf("got %q of %q and %q", got, before, after)
		}
	})
}
