package job

import (
	"fmt"
	"maps"
	"unicode/utf8"
)

// Limits of Labels.
const (
	MaxLabels     = 32
	MaxLabelKey   = 63  // bytes
	MaxLabelValue = 256 // bytes
)

// Labels are key-value pairs that a client attaches to a job to find it again. A key
// consists of letters, digits, '.', '_', '-' and '/' and begins with a letter or a digit; a
// value is any text without control characters.
type Labels map[string]string

// Validate returns an *Invalid that names the first label that exceeds a limit.
func (l Labels) Validate() error {
	if len(l) > MaxLabels {
		return &Invalid{Field: "labels", Problem: fmt.Sprintf("there are %d, at most %d are allowed", len(l), MaxLabels)}
	}
	for key, value := range l {
		if err := ValidateLabel(key, value); err != nil {
			return &Invalid{Field: "labels", Problem: err.Error()}
		}
	}
	return nil
}

// ValidateLabel returns an error that describes what is wrong with a label.
func ValidateLabel(key, value string) error {
	if key == "" || len(key) > MaxLabelKey {
		return fmt.Errorf("a key has 1 to %d bytes, this one has %d", MaxLabelKey, len(key))
	}
	for i := 0; i < len(key); i++ {
		c := key[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-' && c != '/') {
			return fmt.Errorf("key %q consists of other characters than letters, digits, '.', '_', '-' and '/', or begins with one of the last four", key)
		}
	}
	if len(value) > MaxLabelValue {
		return fmt.Errorf("the value of %s has %d bytes, at most %d are allowed", key, len(value), MaxLabelValue)
	}
	if !utf8.ValidString(value) {
		return fmt.Errorf("the value of %s is not valid UTF-8", key)
	}
	for _, r := range value {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("the value of %s contains the control character %q", key, r)
		}
	}
	return nil
}

// Clone returns a copy of l, nil if there are no labels.
func (l Labels) Clone() Labels {
	if len(l) == 0 {
		return nil
	}
	return maps.Clone(l)
}

// Match reports whether l has all of the wanted labels.
func (l Labels) Match(wanted Labels) bool {
	for key, value := range wanted {
		if got, ok := l[key]; !ok || got != value {
			return false
		}
	}
	return true
}
