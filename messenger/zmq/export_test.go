package zmq

import (
	"context"
	"errors"
	"net"
)

// Talk performs a DEALER's handshake on conn, then receives until the end; each
// gets the messages. It returns why it ended.
func Talk(conn net.Conn, limits Limits, each func([]byte)) error {
	l, err := open(context.Background(), conn, dealer, limits.withDefaults())
	if err != nil {
		return err
	}
	defer l.close()
	for {
		frame, err := l.recv()
		switch {
		case err == nil:
			each(frame)
		case !errors.Is(err, errDropped):
			return err
		}
	}
}
