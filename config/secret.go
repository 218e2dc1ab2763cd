package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
)

const stars = "*****"

// Secret is a string that fmt, log/slog, encoding/json and YAML print as stars. The zero
// Secret is empty.
//
// The text is behind a pointer, because fmt prints unexported fields of structs that contain
// a Secret without calling its methods.
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

// shownAs returns the secret with a text that is printed instead of stars.
func (s Secret) shownAs(shown string) Secret {
	s.shown = shown
	return s
}

// redactURL returns a database's URL without its password; stars for an invalid URL, and for
// one of which pgx may read another part as the password: in its URLs #, ? and / do not end
// what is before an @.
func redactURL(address string) string {
	u, err := url.Parse(address)
	if err != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		return stars
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return stars
	}
	if query.Has("password") || query.Has("sslpassword") {
		query.Del("password")
		query.Del("sslpassword")
		u.RawQuery = query.Encode()
	}
	return strings.Replace(u.Redacted(), ":xxxxx@", ":"+stars+"@", 1)
}

// holdsPassword reports whether a database's URL contains a password.
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

// String returns stars, or nothing for an empty secret. For a database's URL it hides only
// the password.
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
