package logging

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// journald receives entries like systemd's journald.
func journald(t *testing.T) (socket string, receive func() map[string]string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return socket, func() map[string]string {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		data, oob := make([]byte, 1<<20), make([]byte, 1024)
		n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
		if err != nil {
			t.Fatal(err)
		}
		data = data[:n]
		if oobn > 0 {
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				t.Fatal(err)
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fds[0]), "entry")
			defer f.Close()
			if data, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<30)); err != nil {
				t.Fatal(err)
			}
		}
		return parse(t, string(data))
	}
}

// parse parses an entry with fields in both formats.
func parse(t *testing.T, entry string) map[string]string {
	t.Helper()
	fields := make(map[string]string)
	for entry != "" {
		end := strings.IndexByte(entry, '\n')
		if end < 0 {
			t.Fatalf("entry ends in %q", entry)
		}
		name, value, short := strings.Cut(entry[:end], "=")
		entry = entry[end+1:]
		if !short {
			length := binary.LittleEndian.Uint64([]byte(entry[:8]))
			value, entry = entry[8:8+length], entry[8+length+1:]
		}
		fields[name] = value
	}
	return fields
}

func TestJournal(t *testing.T) {
	socket, receive := journald(t)
	level := new(slog.LevelVar)
	log, journal, err := NewJournal(JournalConfig{Level: level, Socket: socket, Identifier: "shepherdd"})
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()

	log.Debug("not told")
	log.With("sheep", "dolly").WithGroup("of").Warn("Job failed", "job", "job-1", "error", "two\nlines", "some-key", 3)
	got := receive()
	for name, want := range map[string]string{
		"MESSAGE": `Job failed sheep=dolly of.job=job-1 of.error="two\nlines" of.some-key=3`, "PRIORITY": "4",
		"SYSLOG_IDENTIFIER": "shepherdd", "SHEPHERD_SHEEP": "dolly", "SHEPHERD_OF_JOB": "job-1",
		"SHEPHERD_OF_ERROR": "two\nlines", "SHEPHERD_OF_SOME_KEY": "3",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("further fields: %v", got)
	}

	level.Set(slog.LevelDebug)
	large := strings.Repeat("x", 10<<20)
	for _, c := range []struct {
		tell     func(string, ...any)
		text     string
		priority string
	}{{log.Debug, "now it is", "7"}, {log.Info, "MESSAGE=forged\nPRIORITY=0", "6"}, {log.Error, large, "3"}} {
		c.tell(c.text)
		if got := receive(); got["MESSAGE"] != c.text || got["PRIORITY"] != c.priority {
			t.Errorf("MESSAGE has %d bytes, PRIORITY is %s; want %d and %s", len(got["MESSAGE"]), got["PRIORITY"], len(c.text), c.priority)
		}
	}
}

func TestNoJournal(t *testing.T) {
	_, _, err := NewJournal(JournalConfig{Socket: filepath.Join(t.TempDir(), "none")})
	if err == nil || !strings.Contains(err.Error(), "logging.format") {
		t.Errorf("without a journal: %v", err)
	}
}
