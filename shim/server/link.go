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

// link is a goroutine that keeps a connection to the runner.
type link struct {
	stopDialing, stopReceiving context.CancelFunc
	talking                    sync.WaitGroup
}

// lastWords is how long the shim still receives messages after the runner has ended.
const lastWords = 2 * time.Second

// close makes no new connection, receives from the present one until the runner closes
// it or the time limit has passed, and waits for the goroutine.
func (l *link) close(limit time.Duration) {
	l.stopDialing()
	late := time.AfterFunc(limit, l.stopReceiving)
	l.talking.Wait()
	late.Stop()
	l.stopReceiving()
}

// connector keeps a connection to the runner.
type connector struct {
	*state
	dial func(ctx context.Context, address string, dial DialFunc) (Conn, error)
}

// open starts a link, which connects as soon as the runner listens.
func (s *connector) open() *link {
	l := new(link)
	var dialing, receiving context.Context
	dialing, l.stopDialing = context.WithCancel(context.Background())
	receiving, l.stopReceiving = context.WithCancel(context.Background())
	l.talking.Go(func() { s.talk(dialing, receiving) })
	return l
}

// talk connects to the runner, again after each connection that ends, until the context
// dialing ends, and receives from the last connection until that ends or the context
// receiving does. Connections share no state: messages in flight on one that ended are
// lost, and so is the answer of the job under way.
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
		if receiving.Err() != nil || !s.shouldReconnect(dialing, ended) {
			return
		}
	}
}

// shouldReconnect decides what to do when a connection has ended with the error ended.
// Usually the runner is ending: it waits exitWait for that. If the runner has not ended
// and has a job, the job's answer cannot arrive any more, and the runner is stopped.
// Otherwise the caller is to reconnect.
func (s *connector) shouldReconnect(dialing context.Context, ended error) bool {
	select {
	case <-dialing.Done():
		return false
	case <-time.After(exitWait):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == "" || s.frame != nil {
		return true
	}
	s.stop(stopRequest{fault: true, why: fmt.Sprintf("its connection ended while it had job %s, so the answer could not come: %s", s.job, strings.TrimPrefix(ended.Error(), messenger.ErrClosed.Error()+": "))})
	return false
}

// exitWait is how long a runner that has closed its connection may take to end.
const exitWait = time.Second
