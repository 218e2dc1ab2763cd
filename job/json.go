package job

import (
	"bytes"
	"encoding/json"
)

// JSON encodes v as the original does: one line, with a space after ':' and ','.
// Scripts that look for `"status": "done"` find it.
func JSON(v any) ([]byte, error) {
	text, err := plain(v)
	if err != nil {
		return nil, err
	}
	spaced := make([]byte, 0, len(text)+len(text)/8)
	quoted, escaped := false, false
	for _, c := range text {
		spaced = append(spaced, c)
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ':' || c == ','):
			spaced = append(spaced, ' ')
		}
	}
	return spaced, nil
}

// plain is json.Marshal, with '<', '>' and '&' as they are.
func plain(v any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), nil
}
