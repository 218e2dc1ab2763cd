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

// paths checks that each directory is there or could be made, and that nothing
// that has to stay lies in a directory that is cleaned.
func (ch *checker) paths() {
	type place struct {
		key, path string
		file      bool
	}
	places := []place{{"data_root", ch.DataRoot, false}, {"state_dir", ch.StateDir, false}, {"ledger.path", ch.Ledger.Path, true}}
	if ch.API.Socket != "" {
		places = append(places, place{"api.socket", filepath.Dir(ch.API.Socket), false})
	}
	if ch.embedded() {
		places = append(places, place{"storage.path", ch.Storage.Path, false})
	}
	for _, p := range places {
		if n := ch.at(p.key); n != nil {
			ch.notEmpty(p.key, n.text == "")
		}
		if p.path == "" {
			if p.key == "state_dir" && ch.DataRoot != "" && ch.at(p.key) == nil {
				ch.wrong(ch.near(p.key), p.key, "has no default because HOME is not set; set it, or state_dir")
			}
			continue
		}
		problem := impossible(p.path, p.file)
		if name := ch.cleaned(p.path); name != "" && problem == "" && p.key != "data_root" {
			problem = fmt.Sprintf("lies in data_root/%s, which is cleaned at start-up; expected a place outside of it", name)
		}
		switch {
		case problem == "":
		case ch.at(p.key) != nil:
			ch.reject(p.key, problem)
		case ch.overridden[p.key]:
			ch.wrong(ch.near(p.key), p.key, "%s given on the command line: %s", show(p.path), problem)
		case !ch.bad("state_dir") && !ch.bad("data_root"): // which defaults follow
			ch.wrong(ch.near(p.key), p.key, "its default %s: %s; set %s", show(p.path), problem, p.key)
		}
	}
}

// cleaned returns the sheep in whose directory a path lies.
func (ch *checker) cleaned(path string) string {
	if ch.DataRoot == "" {
		return ""
	}
	path = ch.resolve(path)
	for _, s := range ch.Sheep {
		rel, err := filepath.Rel(ch.resolve(s.Dir(ch.DataRoot)), path)
		if err == nil && filepath.IsLocal(rel) {
			return s.Name
		}
	}
	return ""
}

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
