// Package logging writes the daemon's log: as text in the original shepherd's
// layout, as JSON, or to systemd's journal.
package logging

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config is how to log.
type Config struct {
	Level slog.Leveler // nil: info
	JSON  bool
}

// New makes a logger that writes to w, one line a record.
func New(w io.Writer, cfg Config) *slog.Logger {
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	if cfg.JSON {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: cfg.Level}))
	}
	return slog.New(&text{out: &output{w: w}, level: cfg.Level})
}

// text writes records as the original does,
//
//	2026-11-22 10:08:03.942214: INFO    @shepherd       : Message
//
// followed by their attributes as key=value.
type text struct {
	out    *output
	level  slog.Leveler
	attrs  string // formatted already, each with a space in front
	prefix string // of open groups
}

// output is shared by all loggers made from one.
type output struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (t *text) Enabled(_ context.Context, level slog.Level) bool { return level >= t.level.Level() }

func (t *text) Handle(_ context.Context, r slog.Record) error {
	t.out.mu.Lock()
	defer t.out.mu.Unlock()
	b := t.out.buf[:0]
	b = r.Time.AppendFormat(b, "2006-01-02 15:04:05.000000")
	b = append(b, ": "...)
	b = append(b, levelName(r.Level)...)
	b = append(b, "@shepherd       : "...)
	b = appendLine(b, r.Message)
	b = append(b, t.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, t.prefix, a)
		return true
	})
	b = append(b, '\n')
	t.out.buf = b
	_, err := t.out.w.Write(b)
	return err
}

func (t *text) WithAttrs(attrs []slog.Attr) slog.Handler {
	b := []byte(t.attrs)
	for _, a := range attrs {
		b = appendAttr(b, t.prefix, a)
	}
	c := *t
	c.attrs = string(b)
	return &c
}

func (t *text) WithGroup(name string) slog.Handler {
	if name == "" {
		return t
	}
	c := *t
	c.prefix += name + "."
	return &c
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "ERROR   "
	case l >= slog.LevelWarn:
		return "WARNING "
	case l >= slog.LevelInfo:
		return "INFO    "
	}
	return "DEBUG   "
}

func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			b = appendAttr(b, prefix, g)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, prefix...)
	b = append(b, a.Key...)
	b = append(b, '=')
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindTime:
		return v.Time().AppendFormat(b, time.RFC3339Nano)
	}
	s := v.String()
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f || r == 0x2028 }) {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

// appendLine keeps a message on its line: what looks like a second record cannot
// be slipped in.
func appendLine(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\n\r") {
		return append(b, s...)
	}
	return append(b, strings.NewReplacer("\n", `\n`, "\r", `\r`).Replace(s)...)
}
