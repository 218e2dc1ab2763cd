// Package places says where a job's files lie in buckets, and moves them between
// there and a working directory, for implementations of storage.Store.
package places

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/bucketname"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// maxKey is the longest object key S3 takes, in bytes.
const maxKey = 1024

// Layout is how jobs share buckets.
type Layout struct {
	// Bucket holds all jobs, each below ID/; empty means a bucket per job, named by
	// its id.
	Bucket string
}

// CheckID returns nil when the id can name a place. Where every job has a bucket
// of its own, the id is held to the rules of S3 bucket names.
func (l Layout) CheckID(id job.ID) error {
	if l.Bucket == "" {
		return checkBucket(string(id))
	}
	if _, err := job.ParseID(string(id)); err != nil {
		return invalid(err.Error())
	}
	return nil
}

func checkBucket(name string) error {
	if problem := bucketname.Problem(name); problem != "" {
		return invalid(fmt.Sprintf("job id %q is the name of the job's bucket and %s", name, problem))
	}
	return nil
}

// invalid is an error of the class ErrInvalidArgument whose text clients see.
type invalid string

func (e invalid) Error() string { return string(e) }
func (e invalid) Unwrap() error { return errdefs.ErrInvalidArgument }

// CheckName refuses a name, below a job's place, that could lead out of the
// job's directory or that storage cannot hold.
func CheckName(name string) error {
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
	return fmt.Errorf("%s %s: %w", quoted(name), problem, storage.ErrBadName)
}

// shownName is how many bytes of a long name an error shows, at each of its ends.
const shownName = 80

// quoted is a name as errors show it: a long one by both of its ends.
func quoted(name string) string {
	if len(name) <= 2*shownName {
		return strconv.Quote(name)
	}
	return strconv.Quote(strings.ToValidUTF8(name[:shownName], "")) + "…" + strconv.Quote(strings.ToValidUTF8(name[len(name)-shownName:], ""))
}

// Place is the bucket and the key prefix of a job's files.
func (l Layout) Place(id job.ID) (bucket, prefix string) {
	if l.Bucket == "" {
		return string(id), ""
	}
	return l.Bucket, string(id) + "/"
}

// Key is the bucket and key of one of a job's files, both checked.
func (l Layout) Key(id job.ID, name string) (bucket, key string, err error) {
	if err := l.CheckID(id); err != nil {
		return "", "", err
	}
	if err := CheckName(name); err != nil {
		return "", "", err
	}
	bucket, prefix := l.Place(id)
	if len(prefix)+len(name) > maxKey {
		return "", "", fmt.Errorf("%s is longer than %d bytes: %w", quoted(prefix+name), maxKey, storage.ErrBadName)
	}
	return bucket, prefix + name, nil
}
