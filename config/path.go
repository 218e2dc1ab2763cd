package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// impossible says why a directory (or file) can neither be there nor be made;
// it makes nothing. What only the daemon's user may look at is given the
// benefit of the doubt.
func impossible(path string, file bool) string {
	if path == "" {
		return "is empty; expected a path"
	}
	if strings.ContainsRune(path, 0) {
		return "holds a NUL; expected a path"
	}
	p := filepath.Clean(path)
	for first := true; ; first = false {
		info, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if target, err := os.Readlink(p); err == nil {
				return fmt.Sprintf("impossible path: %s is a symbolic link to %s, which is not there", show(p), show(target))
			}
		case errors.Is(err, syscall.ENOTDIR):
			// The way up leads to what stands where a directory should.
		case errors.Is(err, fs.ErrPermission):
			return ""
		case err != nil:
			return "impossible path: " + errors.Unwrap(err).Error()
		case first && file && info.IsDir():
			return fmt.Sprintf("impossible path: %s is a directory; expected a file", show(p))
		case first && file && info.Mode().IsRegular(), info.IsDir():
			return ""
		case first && file:
			return fmt.Sprintf("impossible path: %s is not a regular file", show(p))
		default:
			return fmt.Sprintf("impossible path: %s is not a directory", show(p))
		}
		p = filepath.Dir(p)
	}
}

func show(path string) string { return strconv.Quote(clip(path)) }

func (ch *checker) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(ch.directory, path)
}

// resolve returns the absolute path with the symbolic links followed that are
// there.
func (ch *checker) resolve(path string) string {
	p, rest := ch.absolute(path), ""
	for {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == filepath.Dir(p) {
			return filepath.Join(p, rest)
		}
		p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest)
	}
}
