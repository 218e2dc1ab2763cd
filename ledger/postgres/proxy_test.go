package postgres

import (
	"encoding/binary"
	"io"
	"maps"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// fault is what becomes of a statement whose connection a proxy cuts.
type fault string

const (
	neverSent  fault = "never sent"  // the server does not get it
	answerLost fault = "answer lost" // the server makes it, and the client does not learn of it
	cutAnswer  fault = "cut answer"  // the client gets the beginning of the answer
	sentLate   fault = "sent late"   // the server gets it when the client has long gone on
	powerLost  fault = "power lost"  // the server makes it, and neither side hears of the other again
)

// proxy is between a ledger and the server, and cuts a connection at a statement.
type proxy struct {
	listener net.Listener
	to       string
	url      string

	mu    sync.Mutex
	left  int   // statements until the fault; 0 for no fault
	fault fault // then
	late  []func()
	conns map[net.Conn]bool
	mute  map[net.Conn]bool // answer no more
	gone  chan struct{}     // closed when the power is lost
	open  sync.WaitGroup
}

func newProxy(t *testing.T, url string) *proxy {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, to: filepath.Join(cfg.Host, ".s.PGSQL."+strconv.Itoa(int(cfg.Port))), conns: map[net.Conn]bool{}, mute: map[net.Conn]bool{}, gone: make(chan struct{})}
	p.url = "postgres://" + cfg.User + "@" + listener.Addr().String() + "/" + cfg.Database + "?sslmode=disable"
	p.open.Go(p.accept)
	t.Cleanup(func() {
		listener.Close()
		p.cutAll()
		p.open.Wait()
	})
	return p
}

// arm has the n-th statement from now on meet the fault, once.
func (p *proxy) arm(n int, f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.fault = n, f
}

// disarm reports whether the fault came.
func (p *proxy) disarm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	came := p.left == 0
	p.left = 0
	return came
}

// deliver has the server get what was held back, and waits until it has answered.
func (p *proxy) deliver() {
	p.mu.Lock()
	late := p.late
	p.late = nil
	p.mu.Unlock()
	for _, send := range late {
		send()
	}
}

// muteAll has the connections of now answer no more, as if the network had lost them.
func (p *proxy) muteAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = maps.Clone(p.conns)
}

// cutAll cuts all connections.
func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", p.to)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.open.Go(func() { p.serve(client, server) })
	}
}

// serve passes messages on, one statement (up to its Sync, or a simple Query) and its answer
// (up to ReadyForQuery) after the other.
func (p *proxy) serve(client, server net.Conn) {
	kept := false
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, client)
		client.Close()
		if !kept {
			delete(p.conns, server)
			server.Close()
		}
	}()
	startup, err := message(client, false)
	if err != nil {
		return
	}
	if _, err := server.Write(startup); err != nil {
		return
	}
	if _, err := until(server, 'Z', client); err != nil {
		return
	}
	for {
		statement, err := until(client, 'S', nil)
		if err != nil {
			return
		}
		met := fault("")
		p.mu.Lock()
		if p.mute[client] {
			p.mu.Unlock()
			_, _ = io.Copy(io.Discard, client)
			return
		}
		if p.left > 0 {
			if p.left--; p.left == 0 {
				met = p.fault
			}
		}
		p.mu.Unlock()
		switch met {
		case neverSent:
			return
		case sentLate:
			kept = true
			p.mu.Lock()
			p.late = append(p.late, func() {
				if _, err := server.Write(statement); err == nil {
					until(server, 'Z', nil)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.conns, server)
				server.Close()
			})
			p.mu.Unlock()
			return
		}
		if _, err := server.Write(statement); err != nil {
			return
		}
		if met == "" {
			if _, err := until(server, 'Z', client); err != nil {
				return
			}
			continue
		}
		if met == powerLost {
			_, _ = until(server, 'Z', nil)
			close(p.gone)
			_, _ = io.Copy(io.Discard, client)
			return
		}
		answer, err := until(server, 'Z', nil)
		if err == nil && met == cutAnswer {
			client.Write(answer[:len(answer)-1])
		}
		return
	}
}

// until reads messages up to one of the type, and passes each on to to where that is
// not nil, or returns all.
func until(from net.Conn, kind byte, to net.Conn) (all []byte, err error) {
	for {
		m, err := message(from, true)
		if err != nil {
			return nil, err
		}
		if to == nil {
			all = append(all, m...)
		} else if _, err := to.Write(m); err != nil {
			return nil, err
		}
		switch m[0] {
		case kind:
			return all, nil
		case 'Q':
			if kind == 'S' {
				return all, nil
			}
		case 'X': // the client's last
			return nil, io.EOF
		}
	}
}

// message reads one message; the first of a client has no type.
func message(from net.Conn, typed bool) ([]byte, error) {
	head := make([]byte, 4, 5)
	if typed {
		head = head[:5]
	}
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	m := make([]byte, len(head)-4+int(binary.BigEndian.Uint32(head[len(head)-4:])))
	copy(m, head)
	_, err := io.ReadFull(from, m[len(head):])
	return m, err
}
