// Package layout holds what the implementations of storage.Store share about a
// job's place: which names there can be, and what of it are inputs.
package layout

import (
	"fmt"
	"iter"
	"net/netip"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// MaxKey is the longest object key S3 takes, in bytes.
const MaxKey = 1024

// CheckBucket answers nil when the name can be that of an S3 bucket, else an error
// of class errdefs.ErrInvalidArgument.
func CheckBucket(name string) error {
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
	return Invalid(fmt.Sprintf("job id %q is the name of the job's bucket and %s", name, problem))
}

// Invalid is an error of the class ErrInvalidArgument whose text clients see.
type Invalid string

func (e Invalid) Error() string { return string(e) }
func (e Invalid) Unwrap() error { return errdefs.ErrInvalidArgument }

func alnum(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }

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
	case len(name) > MaxKey:
		problem = fmt.Sprintf("is longer than %d bytes", MaxKey)
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

// Inputs picks a job's inputs from the listing of its place, checks their names and
// notes whether an earlier run left outputs; empty says that nothing is listed. A
// name that ends in a slash and has nothing in it is a folder, as S3 consoles make
// them.
func Inputs(listing iter.Seq2[storage.Info, error]) (files map[string]storage.Info, staged storage.Staged, empty bool, err error) {
	files, empty = make(map[string]storage.Info), true
	for info, err := range listing {
		if err != nil {
			return nil, storage.Staged{}, false, err
		}
		empty = false
		if strings.HasPrefix(info.Name, job.OutputDir+"/") {
			staged.Outputs = true
		}
		if !strings.HasPrefix(info.Name, job.InputDir+"/") {
			continue
		}
		name, folder := strings.CutSuffix(info.Name, "/")
		if folder && info.Size > 0 {
			name = info.Name
		}
		if err := CheckName(name); err != nil {
			return nil, storage.Staged{}, false, err
		}
		files[info.Name] = info
		if !folder {
			staged.Files++
		}
		staged.Bytes += info.Size
	}
	for name := range files {
		for folder := path.Dir(strings.TrimSuffix(name, "/")); folder != "."; folder = path.Dir(folder) {
			if _, both := files[folder]; both {
				return nil, storage.Staged{}, false, fmt.Errorf("%q cannot be a file and the folder of %q: %w", folder, name, storage.ErrBadName)
			}
		}
	}
	return files, staged, empty, nil
}

// Wanted reports which names below a working directory's inputs/ stay there when
// the files are staged: their own and their folders'.
func Wanted(files map[string]storage.Info) func(name string, dir bool) bool {
	folders := make(map[string]bool)
	for name := range files {
		folder, marker := strings.CutSuffix(name, "/")
		if !marker {
			folder = path.Dir(name)
		}
		for ; folder != "." && !folders[folder]; folder = path.Dir(folder) {
			folders[folder] = true
		}
	}
	return func(name string, dir bool) bool {
		if dir {
			return folders[name]
		}
		_, wanted := files[name]
		return wanted
	}
}
