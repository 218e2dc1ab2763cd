package config

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/job"
)

// String returns the configuration as YAML with all defaults, and stars for secrets. Of
// sheep it shows the file's text with references to the environment unexpanded, and stars
// for values of env and of keys whose names suggest a secret.
func (c Config) String() string {
	var b strings.Builder
	_, _ = c.WriteTo(&b) // a Builder takes all
	return b.String()
}

// WriteTo writes what String returns.
func (c Config) WriteTo(w io.Writer) (int64, error) {
	sheep := yaml.MapSlice{}
	for _, s := range c.Sheep {
		sheep = append(sheep, yaml.MapItem{Key: s.Name, Value: s.settings().summary(false)})
	}
	// The alias has no methods, so that it is marshalled field by field.
	type fields Config
	out, err := yaml.MarshalWithOptions(struct {
		fields `yaml:",inline"`
		Sheep  yaml.MapSlice `yaml:"sheep"`
	}{fields(c), sheep}, yaml.CustomMarshaler(func(d time.Duration) ([]byte, error) {
		return []byte(job.FormatDuration(d)), nil
	}))
	if err != nil {
		return 0, fmt.Errorf("write the configuration: %w", err)
	}
	n, err := w.Write(out)
	return int64(n), err
}

// Format prints String whatever the verb, so that no verb prints more.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue logs String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

var soundsSecret = regexp.MustCompile(`(?i)secret|password|passwd|token|credential|(^|_)(key|pass|auth)$`)

// summary returns a value for String.
func (n *node) summary(hide bool) any {
	switch {
	case n.kind == list:
		out := []any{}
		for _, item := range n.items {
			out = append(out, item.summary(hide))
		}
		return out
	case n.kind == mapping:
		out := yaml.MapSlice{}
		for _, e := range n.entries {
			hide := hide || e.key == "env" || soundsSecret.MatchString(e.key)
			out = append(out, yaml.MapItem{Key: e.key, Value: e.value.summary(hide)})
		}
		return out
	case n.kind == null:
		return nil
	case hide:
		return stars
	case n.referred:
		return n.written
	}
	return n.plain()
}
