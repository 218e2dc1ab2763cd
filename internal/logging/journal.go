package logging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// JournalSocket is the socket on which systemd's journal receives entries.
const JournalSocket = "/run/systemd/journal/socket"

// JournalConfig configures a Journal.
type JournalConfig struct {
	Level slog.Leveler
	// Socket is the journal's; empty is JournalSocket.
	Socket string
	// Identifier is the syslog identifier of the entries: journalctl -t IDENTIFIER.
	Identifier string
}

// Journal writes records to systemd's journal, in its native protocol
// (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md): MESSAGE is the line of the text layout without
// time and level, PRIORITY is the level, and each attribute is a field: job=… is
// SHEPHERD_JOB.
type Journal struct {
	conn  *net.UnixConn // not connected: the journal may be restarted
	to    *net.UnixAddr
	level slog.Leveler
	fixed []byte // the fields that every entry has
	lines *text  // formats messages
	attrs []byte // as fields
	names string // prefix of fields, of open groups

	mu *sync.Mutex
}

// NewJournal makes a logger that writes to the journal, and the journal to close
// when it is not used any more.
func NewJournal(cfg JournalConfig) (*slog.Logger, *Journal, error) {
	if cfg.Socket == "" {
		cfg.Socket = JournalSocket
	}
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	_, err := os.Stat(cfg.Socket)
	var conn *net.UnixConn
	if err == nil {
		conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}) // the kernel chooses the name
	}
	if err != nil {
		return nil, nil, fmt.Errorf("log to systemd's journal: %w (set logging.format to text or json if there is none)", err)
	}
	j := &Journal{conn: conn, to: &net.UnixAddr{Name: cfg.Socket, Net: "unixgram"}, level: cfg.Level, lines: &text{level: cfg.Level}, mu: new(sync.Mutex)}
	j.fixed = appendField(j.fixed, "SYSLOG_IDENTIFIER", cfg.Identifier)
	return slog.New(j), j, nil
}

// Close closes the socket.
func (j *Journal) Close() error { return j.conn.Close() }

// Enabled implements slog.Handler.
func (j *Journal) Enabled(_ context.Context, level slog.Level) bool { return level >= j.level.Level() }

// Handle implements slog.Handler.
func (j *Journal) Handle(_ context.Context, r slog.Record) error {
	message := append(appendLines(nil, r.Message), j.lines.attrs...)
	entry := append([]byte(nil), j.fixed...)
	entry = appendField(entry, "PRIORITY", strconv.Itoa(priority(r.Level)))
	entry = append(entry, j.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		message = appendAttr(message, j.lines.prefix, a)
		entry = appendFields(entry, j.names, a)
		return true
	})
	entry = appendField(entry, "MESSAGE", string(message))
	return j.send(entry)
}

// WithAttrs implements slog.Handler.
func (j *Journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *j
	c.lines = j.lines.WithAttrs(attrs).(*text)
	c.attrs = bytes.Clone(j.attrs)
	for _, a := range attrs {
		c.attrs = appendFields(c.attrs, j.names, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (j *Journal) WithGroup(name string) slog.Handler {
	if name == "" {
		return j
	}
	c := *j
	c.lines = j.lines.WithGroup(name).(*text)
	c.names += name + "_"
	return &c
}

// priority returns the syslog priority of a level.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// send sends an entry: as a datagram or, if it is too large for one, as a memfd.
func (j *Journal) send(entry []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := j.conn.WriteToUnix(entry, j.to)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("make a large journal entry: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(entry); err != nil {
		return fmt.Errorf("make a large journal entry: %w", err)
	}
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("make a large journal entry: %w", err)
	}
	_, _, err = j.conn.WriteMsgUnix(nil, unix.UnixRights(fd), j.to)
	return err
}

// appendFields adds the fields of an attribute; those of a group have its name as a prefix.
func appendFields(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() != slog.KindGroup {
		return appendField(b, fieldName(prefix+a.Key), string(appendLines(nil, v.String())))
	}
	if a.Key != "" {
		prefix += a.Key + "_"
	}
	for _, g := range v.Group() {
		b = appendFields(b, prefix, g)
	}
	return b
}

// appendLines escapes as appendLine does, and keeps line ends.
func appendLines(b []byte, s string) []byte {
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b = append(b, '\n')
		}
		b = appendLine(b, line)
	}
	return b
}

// fieldName returns a valid field name: at most 64 of A-Z, 0-9 and _.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, "SHEPHERD_"+key)
	return name[:min(len(name), 64)]
}

// appendField writes NAME=value or, if the value has several lines, its length before it.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if !strings.Contains(value, "\n") {
		b = append(b, '=')
		b = append(b, value...)
		return append(b, '\n')
	}
	b = append(b, '\n')
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	b = append(b, value...)
	return append(b, '\n')
}
