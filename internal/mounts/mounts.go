// Package mounts detects file systems that a path needs and that are not mounted yet: at
// boot a network file system, or a disk marked nofail, may be mounted minutes after the
// services start. It considers the file systems listed in fstab(5) and in mount units of
// systemd.
package mounts

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Table is the file that lists the machine's file systems, and Units is the directory of
// the administrator's mount units.
const (
	Table = "/etc/fstab"
	Units = "/etc/systemd/system"
)

// Missing returns the listed mount point that path lies on, if nothing is mounted there;
// otherwise it returns "". A path need not exist. A list that cannot be read is an
// error, one that does not exist is not.
func Missing(path string) (string, error) {
	points, err := Points(Table, Units)
	if err != nil {
		return "", err
	}
	return missing(points, path, mountinfo.Mounted)
}

// Points returns the mount points of an fstab and of the mount units in a directory.
func Points(table, units string) ([]string, error) {
	var points []string
	read := func(file string, parse func(io.Reader) ([]string, error)) error {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the machine's file systems: %w", err)
		}
		defer f.Close()
		found, err := parse(f)
		if err != nil {
			return fmt.Errorf("list the machine's file systems: %s: %w", file, err)
		}
		points = append(points, found...)
		return nil
	}
	if err := read(table, parseTable); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(units, "*.mount"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := read(file, parseUnit); err != nil {
			return nil, err
		}
	}
	return points, nil
}

func missing(points []string, path string, mounted func(string) (bool, error)) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	path = resolve(path)
	on := ""
	for _, point := range points {
		rel, err := filepath.Rel(point, path)
		if err == nil && filepath.IsLocal(rel) && len(point) > len(on) {
			on = point
		}
	}
	if on == "" || on == "/" {
		return "", nil
	}
	is, err := mounted(on)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return on, nil
	case err != nil:
		return "", fmt.Errorf("see whether %s is mounted: %w", on, err)
	case is:
		return "", nil
	}
	return on, nil
}

// parseUnit reads Where= of a mount unit.
func parseUnit(unit io.Reader) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(unit)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if ok && strings.TrimSpace(key) == "Where" && filepath.IsAbs(strings.TrimSpace(value)) {
			points = append(points, filepath.Clean(strings.TrimSpace(value)))
		}
	}
	return points, lines.Err()
}

// parseTable reads the second field of each line of an fstab.
func parseTable(table io.Reader) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if point := unescape(fields[1]); filepath.IsAbs(point) { // swap has none
			points = append(points, filepath.Clean(point))
		}
	}
	return points, lines.Err()
}

// unescape replaces \040 and other octal escapes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// resolve follows the symbolic links of the part of path that exists.
func resolve(path string) string {
	rest := ""
	for p := path; ; p = filepath.Dir(p) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == filepath.Dir(p) {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}
