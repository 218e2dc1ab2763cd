package s3

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// maxKey is the longest object key S3 takes, in bytes.
const maxKey = 1024

// CheckID answers nil when the id can name a place here. Where every job has a
// bucket of its own, the id is held to the rules of S3 bucket names.
func (s *Store) CheckID(id job.ID) error {
	if s.bucket == "" {
		return checkBucket(string(id))
	}
	if _, err := job.ParseID(string(id)); err != nil {
		return invalid(err.Error())
	}
	return nil
}

func checkBucket(name string) error {
	problem := ""
	switch {
	case len(name) < 3 || len(name) > 63:
		problem = fmt.Sprintf("has %d characters; it must have 3 to 63", len(name))
	case strings.ContainsFunc(name, func(r rune) bool { return !alnum(r) && r != '.' && r != '-' }):
		problem = "may hold lower-case letters, digits, '.' and '-' only"
	case !alnum(rune(name[0])) || !alnum(rune(name[len(name)-1])):
		problem = "must begin and end with a lower-case letter or a digit"
	case strings.Contains(name, "..") || strings.Contains(name, ".-") || strings.Contains(name, "-."):
		problem = "must have a letter or digit on both sides of every '.'"
	default:
		if _, err := netip.ParseAddr(name); err == nil {
			problem = "must not look like an IP address"
		}
	}
	if problem == "" {
		return nil
	}
	return invalid(fmt.Sprintf("job id %q is the name of the job's bucket and %s", name, problem))
}

// invalid is an error of the class ErrInvalidArgument whose text clients see.
type invalid string

func (e invalid) Error() string { return string(e) }
func (e invalid) Unwrap() error { return errdefs.ErrInvalidArgument }

func alnum(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }

// checkName refuses a name, below a job's place, that could lead out of the
// job's directory or that storage cannot hold.
func checkName(name string) error {
	problem := ""
	switch {
	case name == "":
		problem = "is empty"
	case strings.HasPrefix(name, "/"):
		problem = "is absolute"
	case strings.ContainsRune(name, 0):
		problem = "holds a NUL"
	case !utf8.ValidString(name):
		problem = "is not UTF-8"
	case len(name) > maxKey:
		problem = fmt.Sprintf("is longer than %d bytes", maxKey)
	default:
		for element := range strings.SplitSeq(name, "/") {
			if element == "" || element == "." || element == ".." {
				problem = fmt.Sprintf("has the element %q", element)
				break
			}
		}
	}
	if problem == "" {
		return nil
	}
	return fmt.Errorf("%q %s: %w", name, problem, storage.ErrBadName)
}

// place is the bucket and the key prefix of a job's files.
func (s *Store) place(id job.ID) (bucket, prefix string) {
	if s.bucket == "" {
		return string(id), ""
	}
	return s.bucket, string(id) + "/"
}

// key is the bucket and key of one of a job's files, both checked.
func (s *Store) key(id job.ID, name string) (bucket, key string, err error) {
	if err := s.CheckID(id); err != nil {
		return "", "", err
	}
	if err := checkName(name); err != nil {
		return "", "", err
	}
	bucket, prefix := s.place(id)
	if len(prefix)+len(name) > maxKey {
		return "", "", fmt.Errorf("%q is longer than %d bytes: %w", prefix+name, maxKey, storage.ErrBadName)
	}
	return bucket, prefix + name, nil
}
