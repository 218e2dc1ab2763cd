package zmq_test

import (
	"bytes"
	"testing"

	"github.com/iterait/shepherd/messenger/zmq"
)

// FuzzPeer feeds what a peer may send to the guard and zmq4 behind it: nothing
// panics, no message is larger than allowed, and it makes no difference how
// the bytes come in pieces.
func FuzzPeer(f *testing.F) {
	for _, said := range [][]byte{
		nil, hello(), []byte("HTTP/1.1 200 OK\r\n\r\n"),
		join(greeting("NULL"), readyAs("TEAPOT")),
		join(greeting("NULL"), command("READY", []byte{200, 'S'})),
		join(hello(), frame(0, []byte("hello")), frame(1, []byte("a")), frame(0, []byte("b"))),
		join(hello(), command("PING", []byte("\x00\x09context")), frame(0, bytes.Repeat([]byte("x"), 300))),
		join(hello(), header(0, 1<<62)), join(hello(), header(1, 500), header(4, 1<<40)),
	} {
		f.Add(said, false, uint8(3))
		f.Add(said, true, uint8(200))
	}
	f.Fuzz(func(t *testing.T, said []byte, greeted bool, chunk uint8) {
		if greeted {
			said = join(hello(), said)
		}
		whole, wholeErr := talk(t, said, len(said)+1)
		pieces, piecesErr := talk(t, said, int(chunk)+1)
		if len(whole) != len(pieces) || (wholeErr == nil) != (piecesErr == nil) {
			t.Fatalf("%d messages, %v; in chunks of %d: %d messages, %v", len(whole), wholeErr, int(chunk)+1, len(pieces), piecesErr)
		}
		for i := range whole {
			if !bytes.Equal(whole[i], pieces[i]) {
				t.Fatalf("message %d differs: %q, %q", i, whole[i], pieces[i])
			}
		}
	})
}

func talk(t *testing.T, said []byte, chunk int) (messages [][]byte, err error) {
	err = zmq.Talk(&stub{data: said, chunk: chunk}, small, func(frame []byte) {
		if len(frame) > small.MaxMessage {
			t.Fatalf("a message of %d bytes; at most %d are allowed", len(frame), small.MaxMessage)
		}
		messages = append(messages, frame)
	})
	if err == nil {
		t.Fatal("the peer's end was not reported")
	}
	return messages, err
}
