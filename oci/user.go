package oci

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Account is the user that a process runs as.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups
	Home     string   // empty if it is not known
}

// userSpec is a parsed USER[:GROUP].
type userSpec struct{ user, group string }

// parseUser parses USER, USER:GROUP, USER: or :GROUP. As with Docker, an empty part is the
// same as a missing one.
func parseUser(s string) (userSpec, error) {
	user, group, _ := strings.Cut(s, ":")
	if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '\uFFFD' }) ||
		strings.Contains(group, ":") {
		return userSpec{}, fmt.Errorf("%.100q is not USER or USER:GROUP", s)
	}
	return userSpec{user, group}, nil
}

// ErrNotRegular is the error for a file of an image that is a FIFO, a device or another
// file that is not regular. Container runtimes open /etc/passwd and /etc/group, too, and a
// FIFO would block them forever, so such an image cannot be started.
var ErrNotRegular = errors.New("not a regular file")

// maxAccounts is how many bytes of an image's /etc/passwd and /etc/group, which are not
// trusted, are read.
const maxAccounts = 1 << 20

// ResolveUser resolves USER[:GROUP], each a name or a number, by the /etc/passwd and
// /etc/group of an image with the file system root. An empty user is root. root must
// resolve symbolic links inside the image, and its Open must not block on files that are
// not regular.
//
// As with Docker, a number need not be in /etc/passwd; its group is then 0. With a GROUP
// there are no supplementary groups. Numbers are resolved even if the files cannot be
// opened. The error wraps ErrNotRegular if one of the files is not a regular file.
func ResolveUser(root fs.FS, name string) (Account, error) {
	spec, err := parseUser(name)
	if err != nil {
		return Account{}, fmt.Errorf("user: %w", err)
	}
	if spec.user == "" {
		spec.user = "0"
	}
	var a Account
	uid, numeric := number(spec.user)
	a.UID = uid
	login, known := "", false
	err = eachEntry(root, "etc/passwd", 7, func(f []string) bool {
		entryUID, ok := number(f[2])
		entryGID, ok2 := number(f[3])
		if !ok || !ok2 || f[0] != spec.user && !(numeric && entryUID == uid) {
			return true
		}
		a.UID, a.GID, login, known = entryUID, entryGID, f[0], true
		if absolute(f[5]) {
			a.Home = f[5]
		}
		return false
	})
	if err != nil && (!numeric || errors.Is(err, ErrNotRegular)) {
		return Account{}, err
	}
	if !known && !numeric {
		return Account{}, fmt.Errorf("user: %q is not in the image's /etc/passwd", spec.user)
	}
	gid, groupNumeric := number(spec.group)
	found := groupNumeric
	if groupNumeric {
		a.GID = gid
	}
	err = eachEntry(root, "etc/group", 4, func(f []string) bool {
		entry, ok := number(f[2])
		switch {
		case !ok:
		case spec.group != "":
			if !found && f[0] == spec.group {
				a.GID, found = entry, true
			}
		case known && slices.Contains(strings.Split(f[3], ","), login) && entry != a.GID && !slices.Contains(a.Groups, entry):
			a.Groups = append(a.Groups, entry)
		}
		return len(a.Groups) < 1024 // no process has more of them in practice
	})
	if err != nil && (spec.group != "" && !found || errors.Is(err, ErrNotRegular)) {
		return Account{}, err
	}
	if spec.group != "" && !found {
		return Account{}, fmt.Errorf("user: group %q is not in the image's /etc/group", spec.group)
	}
	return a, nil
}

// number parses a user or group id.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= math.MaxInt32
}

// eachEntry calls f with the fields of each line that has at least n of them, until f
// returns false. A file that does not exist has no lines.
func eachEntry(root fs.FS, name string, n int, f func([]string) bool) error {
	file, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("user: read the image's /%s: %w", name, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("user: read the image's /%s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("user: the image's /%s: %w", name, ErrNotRegular)
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= n && fields[0] != "" && !strings.HasPrefix(fields[0], "#") && !f(fields) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("user: read the image's /%s: %w", name, err)
	}
	return nil
}
