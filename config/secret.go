package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
)

const stars = "*****"

// Secret is a string that never shows: fmt, log/slog, encoding/json and YAML
// print stars. The zero Secret is an empty one.
//
// It holds its text behind a pointer because fmt prints unexported fields of
// whatever struct a Secret ends up in without asking it.
type Secret struct {
	text  *string
	shown string // instead of stars
}

// NewSecret makes a secret of text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// shownAs returns the secret, which is shown as a text that hides what is secret in it.
func (s Secret) shownAs(shown string) Secret {
	s.shown = shown
	return s
}

// redactURL is a database's URL without its password; stars where it cannot be read.
func redactURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return stars
	}
	if query := u.Query(); query.Has("password") || query.Has("sslpassword") {
		query.Del("password")
		query.Del("sslpassword")
		u.RawQuery = query.Encode()
	}
	return strings.Replace(u.Redacted(), ":xxxxx@", ":"+stars+"@", 1)
}

// holdsPassword reports whether there is one in a database's URL.
func holdsPassword(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	_, given := u.User.Password()
	return given || u.Query().Has("password") || u.Query().Has("sslpassword")
}

// Reveal returns the text. The caller must not log or show it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.text == nil }

// String is stars, or nothing for an empty secret; of a database's URL it hides the
// password alone.
func (s Secret) String() string {
	switch {
	case s.IsZero():
		return ""
	case s.shown != "":
		return s.shown
	}
	return stars
}

// Format prints stars whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue logs stars.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText writes stars.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
