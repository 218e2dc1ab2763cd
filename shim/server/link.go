package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/messenger"
)

// link is the way to the runner while it lives.
type link struct {
	stopDialing, stopReceiving context.CancelFunc
	talking                    sync.WaitGroup
}

// lastWords is how long what the runner said last may still be on its way after
// its end.
const lastWords = 2 * time.Second

// close ends the talking: no new connection is made, and the last one may last
// for the given time, should the other side not have closed it.
func (l *link) close(rest time.Duration) {
	l.stopDialing()
	late := time.AfterFunc(rest, l.stopReceiving)
	l.talking.Wait()
	late.Stop()
	l.stopReceiving()
}

// connector keeps a connection to the runner.
type connector struct {
	*state
	dial func(ctx context.Context, address string, dial DialFunc) (Conn, error)
}

// open begins to talk to the runner, whenever it binds.
func (s *connector) open() *link {
	l := new(link)
	var dialing, receiving context.Context
	dialing, l.stopDialing = context.WithCancel(context.Background())
	receiving, l.stopReceiving = context.WithCancel(context.Background())
	l.talking.Go(func() { s.talk(dialing, receiving) })
	return l
}

// talk keeps a connection to the runner until dialing ends, and receives from
// the last one until it ends too, or receiving does. Each connection is a new
// one: what was said on an earlier one is lost, and so is a job whose answer it
// should have brought.
func (s *connector) talk(dialing, receiving context.Context) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(s.spec.Port))
	for {
		ctx, cancel := context.WithCancelCause(dialing)
		conn, err := s.dial(ctx, address, s.dialer().dialFunc(cancel))
		if err != nil {
			cause := context.Cause(ctx)
			cancel(nil)
			if dialing.Err() != nil {
				return
			}
			var foreign *foreignError
			if errors.As(cause, &foreign) {
				err = foreign
			}
			s.stop(stopRequest{why: fmt.Sprintf("cannot talk to it: %v", err), fault: true})
			return
		}
		cancel(nil)
		s.connect(conn)
		var ended error
		for {
			var frame []byte
			if frame, ended = conn.Recv(receiving); ended != nil {
				s.log.Info("the connection to the runner has ended", "error", ended)
				break
			}
			s.received(frame)
		}
		s.disconnect()
		_ = conn.Close()
		if receiving.Err() != nil || !s.goesOn(dialing, ended) {
			return
		}
	}
}

// goesOn decides what the end of a connection means. Mostly that the runner is
// ending: that is waited for. If it is not and has a job, the answer to that
// job cannot come any more, and the runner is stopped. Otherwise a new
// connection is made. ended is why the last one is over.
func (s *connector) goesOn(dialing context.Context, ended error) bool {
	select {
	case <-dialing.Done():
		return false
	case <-time.After(lastBreath):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == "" || s.frame != nil {
		return true
	}
	s.stop(stopRequest{fault: true, why: fmt.Sprintf("its connection ended while it had job %s, so the answer could not come: %s", s.job, strings.TrimPrefix(ended.Error(), messenger.ErrClosed.Error()+": "))})
	return false
}

// lastBreath is how long a runner whose socket has closed may take to end.
const lastBreath = time.Second
