package config

import (
	"fmt"
	"io"
	"log/slog"
)

const stars = "*****"

// Secret is a string that never shows: fmt, log/slog, encoding/json and YAML
// print stars. The zero Secret is an empty one.
//
// It holds its text behind a pointer because fmt prints unexported fields of
// whatever struct a Secret ends up in without asking it.
type Secret struct{ text *string }

// NewSecret makes a secret of text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
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

// String is stars, or nothing for an empty secret.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return stars
}

// Format prints stars whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue logs stars.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText writes stars.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
