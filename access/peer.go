package access

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket, as the kernel recorded it when the
// process connected.
type Peer struct {
	PID    int32
	UID    uint32
	Groups []uint32 // the primary group and the supplementary ones
}

// String returns the user for logs.
func (p Peer) String() string { return "uid " + strconv.FormatUint(uint64(p.UID), 10) }

// PeerOf asks the kernel for the peer of a connection.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("identify the peer of the socket: %w", err)
	}
	var peer Peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed != nil {
			return
		}
		peer = Peer{PID: cred.Pid, UID: cred.Uid, Groups: []uint32{cred.Gid}}
		var others []uint32
		if others, failed = peerGroups(fd); failed == nil {
			peer.Groups = append(peer.Groups, others...)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return Peer{}, fmt.Errorf("identify the peer of the socket: %w", err)
	}
	return peer, nil
}

// peerGroups returns the peer's supplementary groups (Linux 4.13 and later;
// none before).
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE: // size is the required size
			groups = make([]uint32, size/4)
		case unix.ENOPROTOOPT:
			return nil, nil
		default:
			return nil, errno
		}
	}
}

// Local decides which users of this machine may administer the daemon over its socket: root,
// the daemon's own user, and the members of Group unless it is nil.
type Local struct {
	UID   uint32 // the daemon's own
	Group *uint32
}

// Caller returns the caller for a peer. The error is *Refused.
func (l Local) Caller(p Peer) (Caller, error) {
	if p.UID == 0 || p.UID == l.UID || l.Group != nil && slices.Contains(p.Groups, *l.Group) {
		return Caller{Name: p.String(), Scopes: Scopes(), Ambient: true}, nil
	}
	return Caller{}, &Refused{Reason: "This user of the machine may not administer shepherd; ask for membership in the group of api.socket_group"}
}

// Refused is the error for a known caller without the needed permission; its text is for
// the caller.
type Refused struct{ Reason string }

func (e *Refused) Error() string { return e.Reason }

// arrival is the peer of a connection to the socket, or the error of PeerOf.
type arrival struct {
	peer Peer
	err  error
}

// Arrive is an http.Server's ConnContext: it records the peer of a unix socket for all
// requests of the connection.
func Arrive(ctx context.Context, conn net.Conn) context.Context {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer, err := PeerOf(local)
	return context.WithValue(ctx, peerKey, arrival{peer, err})
}

// WithPeer returns a context like that of Arrive, for the given peer.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey, arrival{peer: p})
}

// PeerFrom returns the peer that Arrive recorded; ok is false for a network connection.
func PeerFrom(ctx context.Context) (p Peer, ok bool, err error) {
	a, ok := ctx.Value(peerKey).(arrival)
	return a.peer, ok, a.err
}
