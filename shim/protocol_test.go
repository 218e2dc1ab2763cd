package shim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

func TestMessagesSurviveTheWire(t *testing.T) {
	var wire bytes.Buffer
	sent := []*Message{
		{Kind: KindHello, Hello: &Hello{Version: 1, Life: "x", PID: 3, Answers: 2, Exited: true}},
		{Kind: KindSend, Number: 7, Job: "a", DataRoot: "/data <&>"},
		{Kind: KindAnswer, Answer: &Answer{Job: "a", Failure: &job.Failure{Message: "č\n\"", Traceback: strings.Repeat("<", messenger.MaxMessage)}}},
		{Kind: KindExit, Exit: &Exit{Code: -1, Signal: "SIGKILL", OutOfMemory: true}},
	}
	for _, m := range sent {
		if err := WriteMessage(&wire, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent {
		got, err := ReadMessage(&wire)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %.200v, %v", got, err)
		}
	}
	if _, err := ReadMessage(&wire); err != io.EOF {
		t.Errorf("at the end: %v, want %v", err, io.EOF)
	}
}

func frame(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func TestReadMessageRefuses(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want error
	}{
		{nil, io.EOF},
		{[]byte{0, 0}, io.ErrUnexpectedEOF},
		{[]byte{0, 0, 0, 0}, ErrProtocol},
		{[]byte{0xff, 0xff, 0xff, 0xff}, ErrProtocol},
		{[]byte{0, 0xff, 0xff, 0xff, '{'}, io.ErrUnexpectedEOF},
		{frame("{"), ErrProtocol},
		{frame("{}"), ErrProtocol},
		{frame(`{"kind":7}`), ErrProtocol},
	} {
		if m, err := ReadMessage(bytes.NewReader(c.data)); !errors.Is(err, c.want) {
			t.Errorf("%q: got %+v, %v, want %v", c.data, m, err, c.want)
		}
	}
}

func TestTooLongAMessageIsNotWritten(t *testing.T) {
	var wire bytes.Buffer
	err := WriteMessage(&wire, &Message{Kind: KindReply, Error: strings.Repeat("x", MaxFrame)})
	if !errors.Is(err, ErrProtocol) || wire.Len() > 0 {
		t.Errorf("got %v and %d bytes, want %v and none", err, wire.Len(), ErrProtocol)
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add(frame(`{"kind":"hello","hello":{"version":1}}`))
	f.Add([]byte{0, 0xff, 0, 0})
	f.Add(frame(`{"kind":"send","number":18446744073709551615,"job":"a","frame":"eyJ9"}`))
	f.Add(frame(`{"kind":"exit","exit":{"code":-1,"signal":9,"stopped":true}}`))
	f.Add(frame(`{"kind":"reply","number":1,"error":"\ud800"}`)[:9])
	f.Add(append(frame(`null`), frame(`{"kind":"answer"}`)...))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ReadMessage(bytes.NewReader(data))
		if err != nil {
			return
		}
		var wire bytes.Buffer
		if err := WriteMessage(&wire, m); err != nil {
			t.Fatal(err)
		}
		again, err := ReadMessage(&wire)
		if err != nil || again.Kind != m.Kind || again.Number != m.Number {
			t.Errorf("%+v came back as %+v, %v", m, again, err)
		}
	})
}
