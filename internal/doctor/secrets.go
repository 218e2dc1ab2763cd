package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Secrets checks that no file with secrets can be read or changed by another user of
// the machine.
type Secrets struct {
	// Files may contain secrets: configurations, keys, tokens.
	Files []string
	// Dirs are searched for files with secrets that other users can read.
	Dirs []string
}

// Name implements Check.
func (Secrets) Name() string { return "secrets" }

// Examine implements Check.
func (s Secrets) Examine(ctx context.Context) []Finding {
	var findings []Finding
	checked := 0
	for _, path := range s.Files {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the check of the part that needs it reports that
		}
		if err != nil {
			findings = append(findings, fromError(Warning, err, "run this as the daemon's user"))
			continue
		}
		checked++
		mode := info.Mode().Perm()
		switch {
		case mode&0o002 != 0:
			findings = append(findings, failure("chmod o-rwx "+path, "%s can be changed by every user of the machine (mode %04o)", path, mode))
		case mode&0o004 != 0 && !hidden(path):
			findings = append(findings, failure("chmod o-rwx "+path, "%s can be read by every user of the machine (mode %04o)", path, mode))
		}
	}
	for _, dir := range s.Dirs {
		if findings = append(findings, openBelow(ctx, dir)...); ctx.Err() != nil {
			return append(findings, fromError(Warning, context.Cause(ctx), ""))
		}
		checked++
	}
	if len(findings) == 0 && checked > 0 {
		findings = append(findings, ok("no secret is readable by other users"))
	}
	return findings
}

// hidden reports whether a parent directory keeps other users from reaching a path.
func hidden(path string) bool {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return true
		}
		if dir == filepath.Dir(dir) {
			return false
		}
	}
}

// mostOpen is the number of files of a directory that are named.
const mostOpen = 3

// openBelow names the files below a directory that others can read, if they can reach
// it. It stays on the directory's file system.
func openBelow(ctx context.Context, dir string) []Finding {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o001 == 0 || hidden(dir) {
		return nil
	}
	var device uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		device = st.Dev
	}
	var open []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil || len(open) >= mostOpen {
			return fs.SkipAll
		}
		if err != nil {
			return nil // unreadable, so not open
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if d.IsDir() {
			st, ok := info.Sys().(*syscall.Stat_t)
			if info.Mode().Perm()&0o001 == 0 || ok && st.Dev != device {
				return fs.SkipDir
			}
			return nil
		}
		if info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 && slices.Contains(secretNames, d.Name()) {
			open = append(open, path)
		}
		return nil
	})
	var findings []Finding
	for _, path := range open {
		findings = append(findings, failure("chmod o-rwx "+dir, "%s can be read by every user of the machine", path))
	}
	return findings
}

// secretNames are the files of the state directory that hold jobs, payloads or keys.
var secretNames = []string{"ledger.db", "ledger.db-wal", "ledger.db-shm", "credentials", "spec.json", "answer"}
