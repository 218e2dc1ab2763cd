package shim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// Version is the version of the protocol and of the files.
const Version = 1

// MaxFrame is the largest message in bytes. A runner's answer, of at most
// messenger.MaxMessage bytes, can grow when its text is encoded as JSON again.
const MaxFrame = 4 * messenger.MaxMessage

// Feature is an addition to the protocol that both sides must know.
type Feature string

// The features.
const (
	// FeatureSuperseded: the shim sends superseded before it closes a connection
	// for a newer one; after any other end the daemon reconnects.
	FeatureSuperseded Feature = "superseded"
	// FeatureEvents: the shim forwards the runner's events.
	FeatureEvents Feature = "events"
	// FeatureCancel: the daemon may send cancel.
	FeatureCancel Feature = "cancel"
	// FeatureDeadline: send may have a deadline.
	FeatureDeadline Feature = "deadline"
)

// Features returns the features that this program supports, as daemon or shim.
func Features() []Feature {
	return []Feature{FeatureSuperseded, FeatureEvents, FeatureCancel, FeatureDeadline}
}

// Kind is the kind of a message.
type Kind string

// The requests of the daemon. Each with a Number is answered by a reply.
const (
	KindSend    Kind = "send"    // Job, DataRoot, Deadline: give the job to the runner
	KindAck     Kind = "ack"     // Job: its answer is stored
	KindStop    Kind = "stop"    // Grace: stop the runner
	KindRelease Kind = "release" // the exit is stored: end the shim
	KindWatch   Kind = "watch"   // PID: watch the container's process, which has not begun
	KindBegun   Kind = "begun"   // the container's process has begun
	KindCancel  Kind = "cancel"  // Job: ask the runner to cancel it
)

// The messages of the shim; both sides send hello.
const (
	KindHello     Kind = "hello"     // Hello
	KindStarted   Kind = "started"   // PID: the runner's process exists
	KindConnected Kind = "connected" // the runner's socket has answered
	KindAnswer    Kind = "answer"    // Answer
	KindExit      Kind = "exit"      // Exit: no process of the runner is left
	KindReply     Kind = "reply"     // Number, Error: the result of a request

	KindSuperseded Kind = "superseded" // another daemon has connected
	KindEvent      Kind = "event"      // Event
)

// Message is a message of either side; each Kind uses the fields named beside it.
// Unknown fields and kinds are ignored, so that they can be added.
type Message struct {
	Kind     Kind          `json:"kind"`
	Number   uint64        `json:"number,omitempty"`
	Hello    *Hello        `json:"hello,omitempty"`
	Job      job.ID        `json:"job,omitempty"`
	DataRoot string        `json:"io_data_root,omitempty"`
	Grace    time.Duration `json:"grace_ns,omitempty"`
	PID      int           `json:"pid,omitempty"`
	Answer   *Answer       `json:"answer,omitempty"`
	Exit     *Exit         `json:"exit,omitempty"`
	Error    string        `json:"error,omitempty"`
	Deadline time.Time     `json:"deadline,omitzero"`
	Event    *Event        `json:"event,omitempty"`
}

// Event is an event of a runner; see messenger.Event.
type Event struct {
	Kind     messenger.EventKind `json:"kind"`
	Job      job.ID              `json:"job,omitempty"`
	Time     time.Time           `json:"time"`
	Progress float64             `json:"progress,omitempty"`
	Text     string              `json:"text,omitempty"`
	Features []string            `json:"features,omitempty"`
	Log      string              `json:"log,omitempty"`
	Lost     int                 `json:"lost,omitempty"`
}

// Hello is the first message of each side. The daemon's has Version and Features only.
type Hello struct {
	Version   int       `json:"version"`
	Features  []Feature `json:"features,omitempty"`
	Life      string    `json:"life,omitempty"`
	PID       int       `json:"pid,omitempty"`        // the shim's
	RunnerPID int       `json:"runner_pid,omitempty"` // 0 while there is none
	Connected bool      `json:"connected,omitempty"`
	Exited    bool      `json:"exited,omitempty"`  // an exit message follows the answers
	Job       job.ID    `json:"job,omitempty"`     // under way: sent and not answered
	Answers   int       `json:"answers,omitempty"` // number of unacknowledged answers; as many answer messages follow
}

// Has reports whether the side that sent the hello supports a feature.
func (h *Hello) Has(f Feature) bool { return slices.Contains(h.Features, f) }

// VersionError is the error when the shim and the daemon have different protocol
// versions. The runner can only be stopped.
type VersionError struct{ Shim, Daemon int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the shim speaks protocol version %d, the daemon version %d", e.Shim, e.Daemon)
}

// ErrProtocol is wrapped by ReadMessage's error for bytes that are not a message.
var ErrProtocol = errors.New("not a message of the shim protocol")

// ReadMessage reads one message. The error is io.EOF when r ends before it.
func ReadMessage(r io.Reader) (*Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > MaxFrame {
		return nil, fmt.Errorf("%w: a length of %d bytes, 1 to %d are allowed", ErrProtocol, size, MaxFrame)
	}
	var body bytes.Buffer // grows with the bytes received, not by the announced length
	if size <= 64<<10 {
		body.Grow(int(size) + bytes.MinRead)
	}
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	m := new(Message)
	if err := json.Unmarshal(body.Bytes(), m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if m.Kind == "" {
		return nil, fmt.Errorf("%w: it has no kind", ErrProtocol)
	}
	return m, nil
}

// WriteMessage writes one message by a single call of w.Write.
func WriteMessage(w io.Writer, m *Message) error {
	var frame bytes.Buffer
	frame.Write(make([]byte, 4))
	encoder := json.NewEncoder(&frame)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(m); err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	size := frame.Len() - 4
	if size > MaxFrame {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrProtocol, size, MaxFrame)
	}
	binary.BigEndian.PutUint32(frame.Bytes(), uint32(size))
	_, err := w.Write(frame.Bytes())
	return err
}
