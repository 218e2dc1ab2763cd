package bounded

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// When Settle returns, all data written before the call has been processed, however slow the
// reader is.
func TestPipeSettles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := NewPipe(r)
	defer p.Close()
	var got bytes.Buffer
	ended := make(chan error)
	go func() {
		buffer := make([]byte, 7)
		for {
			n, err := p.Read(buffer)
			time.Sleep(time.Millisecond)
			got.Write(buffer[:n])
			p.Done(n)
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	p.Settle(time.Now().Add(time.Minute)) // nothing is due
	if done, due := p.Progress(); done != 0 || due != 0 {
		t.Errorf("%d of %d bytes were processed before any was written", done, due)
	}
	if _, err := io.WriteString(w, strings.Repeat("0123456789", 30)); err != nil {
		t.Fatal(err)
	}
	p.Settle(time.Now().Add(time.Minute))
	if n, _ := p.Progress(); n != 300 {
		t.Errorf("%d bytes were dealt with", n)
	}
	w.Close()
	if err := <-ended; err != io.EOF || got.Len() != 300 {
		t.Errorf("read %d bytes, %v", got.Len(), err)
	}
	if n, err := p.Read(nil); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
}

// Settle does not wait for a stuck reader beyond the given time.
func TestPipeIsGivenUp(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := NewPipe(r)
	if _, err := io.WriteString(w, "x"); err != nil {
		t.Fatal(err)
	}
	p.Settle(time.Now().Add(time.Millisecond))
	if done, due := p.Progress(); done != 0 || due != 1 {
		t.Errorf("%d of %d bytes were processed, want 0 of 1", done, due)
	}
	w.Close()
	p.Close()
	p.Settle(time.Now().Add(time.Hour)) // closed: nothing is due
	if _, err := p.Read(make([]byte, 1)); err == nil {
		t.Error("a closed pipe was read")
	}
}
