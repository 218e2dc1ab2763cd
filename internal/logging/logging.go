// Package logging writes the daemon's log: as text in the original shepherd's
// layout, as JSON, or to systemd's journal.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Config configures a logger.
type Config struct {
	Level slog.Leveler // nil: info
	JSON  bool
}

// New makes a logger that writes to w, one line per record.
func New(w io.Writer, cfg Config) *slog.Logger {
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	if cfg.JSON {
		return slog.New(slog.NewJSONHandler(printable{w}, &slog.HandlerOptions{Level: cfg.Level}))
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
	attrs  string // formatted, each after a space
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
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) }) {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

// appendLine keeps a message on its line and escapes characters that control a terminal or are
// invisible: control characters (C0 and C1), direction marks and the like. A message cannot
// contain text that looks like a second record.
func appendLine(b []byte, s string) []byte {
	for i, r := range s {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			b = utf8.AppendRune(b, r)
			continue
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		quoted := strconv.Quote(s[i : i+size])
		b = append(b, quoted[1:len(quoted)-1]...)
	}
	return b
}

// printable is a writer for JSON that escapes characters which JSON allows and which control a
// terminal or are invisible (C1 controls, direction marks).
type printable struct{ w io.Writer }

func (p printable) Write(line []byte) (int, error) {
	var b []byte
	clean := 0 // up to here, line is in b
	for i := 0; i < len(line); {
		r, size := utf8.DecodeRune(line[i:])
		if r > 0x7e && !unicode.IsPrint(r) {
			b = append(b, line[clean:i]...)
			for _, unit := range utf16.Encode([]rune{r}) {
				b = fmt.Appendf(b, `\u%04x`, unit)
			}
			clean = i + size
		}
		i += size
	}
	if clean == 0 {
		return p.w.Write(line)
	}
	if _, err := p.w.Write(append(b, line[clean:]...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
