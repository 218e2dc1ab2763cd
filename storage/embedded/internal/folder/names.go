package folder

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/iterait/shepherd/internal/bucketname"
)

// How a key becomes a path
//
// The parts of a key between slashes become directories, the last one a file:
// "inputs/input" is inputs/input@. File names end in "@", which a directory's
// name never does, so "a/b" (a/b@) lies beside "a/b/c" (a/b/c@). Control
// characters, "%", "@", "+", and a part that is "." or ".." are written with
// %XX; an empty part is "%" (as a file just "@"). A part of 200 bytes or more
// is cut, and what follows lies in a directory whose name ends in "+".
//
// Each directory thus holds keys that share a beginning, and the beginnings
// within one directory sort as the keys do: a listing in key order needs to
// sort one directory at a time.
const (
	fileMark = "@"
	cutMark  = "+"
	empty    = "%"
	cutAt    = 200

	// MaxKey is the most bytes a key has.
	MaxKey = 1024
)

// ValidBucket reports whether S3's rules allow the name.
func ValidBucket(name string) bool { return bucketname.Valid(name) }

// ValidKey returns nil when key can name an object: 1 to MaxKey bytes of UTF-8.
func ValidKey(key string) error {
	switch {
	case key == "" || len(key) > MaxKey:
		return fmt.Errorf("%w: a key has 1 to %d bytes", ErrBadKey, MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: a key is UTF-8", ErrBadKey)
	}
	return nil
}

func (s *Store) bucketDir(bucket string) string { return filepath.Join(s.bucketsDir(), bucket) }

// location is where an object lies: bucket directory, the directories below it,
// the file.
type location struct {
	bucket string
	below  []string
	file   string
}

// dir is the directory the object's file lies in.
func (l location) dir() string {
	return strings.Join(append([]string{l.bucket}, l.below...), "/")
}

func (l location) path() string { return l.dir() + "/" + l.file }

// locate returns where the object of a bucket and key lies.
func (s *Store) locate(bucket, key string) (location, error) {
	if !ValidBucket(bucket) {
		return location{}, fmt.Errorf("%q: %w", bucket, ErrNoBucket)
	}
	if err := ValidKey(key); err != nil {
		return location{}, err
	}
	below, last := split(key)
	return location{bucket: s.bucketDir(bucket), below: below, file: last + fileMark}, nil
}

// split returns the directory names of a key, and the name of its last part.
func split(key string) (dirs []string, last string) {
	parts := strings.Split(key, "/")
	for i, part := range parts {
		cuts, rest := encode(part)
		dirs = append(dirs, cuts...)
		if i == len(parts)-1 {
			return dirs, rest
		}
		if rest == "" {
			rest = empty
		}
		dirs = append(dirs, rest)
	}
	return dirs, ""
}

// encode writes one part of a key as file names: the cut-off beginnings, then
// the rest. A cut depends only on what lies before it.
func encode(part string) (cuts []string, rest string) {
	var b strings.Builder
	for _, r := range part {
		if r < 0x20 || r == 0x7f || r == '%' || r == '@' || r == '+' {
			fmt.Fprintf(&b, "%%%02X", r)
		} else {
			b.WriteRune(r)
		}
		if b.Len() >= cutAt {
			cuts = append(cuts, b.String()+cutMark)
			b.Reset()
		}
	}
	if rest = b.String(); rest == "." || rest == ".." {
		rest = strings.ReplaceAll(rest, ".", "%2E")
	}
	return cuts, rest
}

// entry is a name in a bucket's directories, read back.
type entry struct {
	file   string // its name on disk
	begins string // what it adds to the key; a directory's keys begin with it
	object bool
}

// decode reads a name back. It returns false for names that encode does not
// write.
func decode(name string) (entry, bool) {
	e := entry{file: name}
	text, tail := name, "/"
	switch {
	case strings.HasSuffix(name, fileMark):
		e.object, text, tail = true, name[:len(name)-1], ""
	case strings.HasSuffix(name, cutMark):
		text, tail = name[:len(name)-1], ""
	case name == empty:
		text = ""
	}
	if !strings.Contains(text, "%") {
		e.begins = text + tail
		return e, true
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		if i+2 >= len(text) {
			return e, false
		}
		hi, lo := unhex(text[i+1]), unhex(text[i+2])
		if hi < 0 || lo < 0 {
			return e, false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	e.begins = b.String() + tail
	return e, true
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
