package api

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/iterait/shepherd/job"
)

// reader reads one JSON text value by value. Unlike encoding/json it refuses
// invalid UTF-8 and lone surrogates instead of replacing them, tells its caller
// of every member of an object, and decodes strings in place, so that a large
// payload is in memory once. It reads what the description of a job can hold:
// objects, lists, strings, numbers and null.
type reader struct {
	data []byte
	pos  int
}

// document reads the whole text as one value.
func (r *reader) document(value func() error) error {
	if !utf8.Valid(r.data) {
		return &job.Invalid{Field: "body", Problem: "not valid UTF-8"}
	}
	if r.space(); r.pos == len(r.data) {
		return &job.Invalid{Field: "body", Problem: "is empty; a JSON object is expected"}
	}
	if err := value(); err != nil {
		return err
	}
	if r.space(); r.pos < len(r.data) {
		return invalidJSON(r.pos, "something follows the object")
	}
	return nil
}

// object reads an object and calls member with the full name of each of its
// fields: path, a dot and the name, or the name alone where path is empty.
// Member reads the field's value. A field that comes twice is refused.
func (r *reader) object(path string, member func(field string) error) error {
	name := path
	if path == "" {
		name = "body"
	}
	if err := r.expect(name, "an object", '{'); err != nil {
		return err
	}
	r.pos++
	if r.space(); r.peek() == '}' {
		r.pos++
		return nil
	}
	seen := make(map[string]bool)
	for {
		if r.space(); r.peek() != '"' {
			return invalidJSON(r.pos, "the name of a field, in double quotes, is expected")
		}
		key, err := r.unquote()
		if err != nil {
			return err
		}
		if r.space(); r.peek() != ':' {
			return invalidJSON(r.pos, "a colon is expected")
		}
		r.pos++
		r.space()
		field := string(key)
		if path != "" {
			field = path + "." + field
		}
		if seen[field] {
			return &job.Invalid{Field: field, Problem: "this field is given twice"}
		}
		seen[field] = true
		if err := member(field); err != nil {
			return err
		}
		r.space()
		switch r.peek() {
		case ',':
			r.pos++
		case '}':
			r.pos++
			return nil
		default:
			return invalidJSON(r.pos, "a comma or the end of the object is expected")
		}
	}
}

// list reads a list and calls element with the full name of each of its elements,
// which reads it.
func (r *reader) list(path string, element func(name string) error) error {
	if err := r.expect(path, "a list", '['); err != nil {
		return err
	}
	r.pos++
	if r.space(); r.peek() == ']' {
		r.pos++
		return nil
	}
	for i := 0; ; i++ {
		r.space()
		if err := element(path + "[" + strconv.Itoa(i) + "]"); err != nil {
			return err
		}
		r.space()
		switch r.peek() {
		case ',':
			r.pos++
		case ']':
			r.pos++
			return nil
		default:
			return invalidJSON(r.pos, "a comma or the end of the list is expected")
		}
	}
}

// null reads a null, if there is one.
func (r *reader) null() bool {
	const word = "null"
	if len(r.data)-r.pos < len(word) || string(r.data[r.pos:r.pos+len(word)]) != word {
		return false
	}
	r.pos += len(word)
	return true
}

// text reads the string that is field's value. It is never nil.
func (r *reader) text(field string) ([]byte, error) {
	if err := r.expect(field, "a string", '"'); err != nil {
		return nil, err
	}
	return r.unquote()
}

// integer reads the whole number of 32 bits that is field's value.
func (r *reader) integer(field string) (int32, error) {
	if c := r.peek(); c != '-' && !digit(c) {
		return 0, r.expect(field, "a whole number", '0')
	}
	number, err := r.number()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(number, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, &job.Invalid{Field: field, Problem: "must lie between -2147483648 and 2147483647"}
	case err != nil:
		return 0, &job.Invalid{Field: field, Problem: "must be a whole number"}
	}
	return int32(n), nil
}

// number reads the characters of a number, which the caller parses.
func (r *reader) number() (string, error) {
	start := r.pos
	for c := r.peek(); digit(c) || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'; c = r.peek() {
		r.pos++
	}
	number := string(r.data[start:r.pos])
	if digits := strings.TrimPrefix(number, "-"); len(digits) > 1 && digits[0] == '0' && digit(digits[1]) {
		return "", invalidJSON(start, "a number with a leading zero")
	}
	return number, nil
}

// optional reads a value that may be null, which means that it is left out.
func (r *reader) optional(read func() error) error {
	if r.null() {
		return nil
	}
	return read()
}

// limit reads a duration, or null, into what it limits.
func (r *reader) limit(field string, into **time.Duration) error {
	return r.optional(func() error {
		d, err := r.duration(field)
		*into = &d
		return err
	})
}

// duration reads the number of seconds, or the text, that is field's value.
func (r *reader) duration(field string) (time.Duration, error) {
	const wanted = "must be a number of seconds, or a duration such as 30s, 1h30m or 7d"
	switch c := r.peek(); {
	case c == '"':
		text, err := r.unquote()
		if err != nil {
			return 0, err
		}
		d, err := job.ParseDuration(string(text))
		if err != nil {
			return 0, &job.Invalid{Field: field, Problem: wanted}
		}
		return d, nil
	case c == '-' || digit(c):
	default:
		return 0, r.expect(field, "a number of seconds or a duration", '0')
	}
	number, err := r.number()
	if err != nil {
		return 0, err
	}
	if !json.Valid([]byte(number)) {
		return 0, &job.Invalid{Field: field, Problem: wanted}
	}
	seconds, _ := strconv.ParseFloat(number, 64) // infinity where it is too large
	switch {
	case seconds < 0:
		return -1, nil
	case seconds > job.MaxTimeout.Seconds():
		return job.MaxTimeout + 1, nil
	}
	return time.Duration(math.Ceil(seconds * float64(time.Second))), nil // what is tiny is not 0, which is no limit
}

// time reads the time, with its zone, that is field's value.
func (r *reader) time(field string) (time.Time, error) {
	text, err := r.text(field)
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if t = t.UTC(); err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}, &job.Invalid{Field: field, Problem: "must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+01:00"}
	}
	return t.Truncate(time.Microsecond), nil
}

// expect checks that the next value begins as the wanted kind does.
func (r *reader) expect(field, wanted string, first byte) error {
	var found string
	switch c := r.peek(); {
	case c == first:
		return nil
	case c == '"':
		found = "a string"
	case c == '{':
		found = "an object"
	case c == '[':
		found = "a list"
	case c == '-' || digit(c):
		found = "a number"
	case r.word("true") || r.word("false"):
		found = "a boolean"
	case r.null():
		return &job.Invalid{Field: field, Problem: "cannot be null"}
	default:
		return invalidJSON(r.pos, "a value is expected")
	}
	return &job.Invalid{Field: field, Problem: "must be " + wanted + ", not " + found}
}

func (r *reader) word(word string) bool {
	return len(r.data)-r.pos >= len(word) && string(r.data[r.pos:r.pos+len(word)]) == word
}

// unquote reads a string and decodes it in place: what an escape stands
// for is never longer than the escape.
func (r *reader) unquote() ([]byte, error) {
	r.pos++
	start, end := r.pos, r.pos
	for r.pos < len(r.data) {
		c := r.data[r.pos]
		switch {
		case c == '"':
			r.pos++
			return r.data[start:end:end], nil
		case c < ' ':
			return nil, invalidJSON(r.pos, "a control character in a string")
		case c != '\\':
			r.data[end] = c
			end++
			r.pos++
		default:
			decoded, err := r.escape()
			if err != nil {
				return nil, err
			}
			end += utf8.EncodeRune(r.data[end:end+utf8.RuneLen(decoded)], decoded)
		}
	}
	return nil, invalidJSON(r.pos, "a string without its closing quote")
}

// escape reads one escape sequence, or the two of a surrogate pair.
func (r *reader) escape() (rune, error) {
	at := r.pos
	if at+1 == len(r.data) {
		return 0, invalidJSON(at, "an incomplete escape sequence")
	}
	letter := r.data[at+1]
	r.pos += 2
	switch letter {
	case '"', '\\', '/':
		return rune(letter), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, invalidJSON(at, "an unknown escape sequence")
	}
	unit, ok := r.hex()
	if !ok {
		return 0, invalidJSON(at, "an incomplete \\u escape")
	}
	if !utf16.IsSurrogate(unit) {
		return unit, nil
	}
	if r.word(`\u`) {
		r.pos += 2
		if low, ok := r.hex(); ok {
			if decoded := utf16.DecodeRune(unit, low); decoded != utf8.RuneError {
				return decoded, nil
			}
		}
	}
	return 0, invalidJSON(at, "half a surrogate pair, which is no character")
}

// hex reads the four digits of a \u escape.
func (r *reader) hex() (rune, bool) {
	if len(r.data)-r.pos < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(r.data[r.pos:r.pos+4]), 16, 16)
	if err != nil {
		return 0, false
	}
	r.pos += 4
	return rune(n), true
}

func (r *reader) space() {
	for r.pos < len(r.data) {
		switch r.data[r.pos] {
		case ' ', '\t', '\n', '\r':
			r.pos++
		default:
			return
		}
	}
}

// peek is the next byte, 0 at the end; a 0 in the text is never valid where
// peek is asked.
func (r *reader) peek() byte {
	if r.pos == len(r.data) {
		return 0
	}
	return r.data[r.pos]
}

func digit(c byte) bool { return c >= '0' && c <= '9' }
