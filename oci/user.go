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

// Account is whom a process runs as.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary ones
	Home     string   // empty where it is not known
}

// userSpec is a parsed USER[:GROUP].
type userSpec struct{ user, group string }

// parseUser reads USER, USER:GROUP, USER: or :GROUP; Docker takes a part that is
// empty as one that is left out.
func parseUser(s string) (userSpec, error) {
	user, group, _ := strings.Cut(s, ":")
	if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '\uFFFD' }) ||
		strings.Contains(group, ":") {
		return userSpec{}, fmt.Errorf("%.100q is not USER or USER:GROUP", s)
	}
	return userSpec{user, group}, nil
}

// ErrNotRegular says that a file of an image is a FIFO, a device or something else
// that is not read. Container runtimes open /etc/passwd and /etc/group as well, and
// a FIFO blocks them for ever: such an image cannot be started.
var ErrNotRegular = errors.New("not a regular file")

// maxAccounts bounds what is read of an image's /etc/passwd and /etc/group,
// which come from a registry.
const maxAccounts = 1 << 20

// ResolveUser finds who USER[:GROUP] is in an image whose root is root; names and
// numbers may stand for either. An empty user is root. root must resolve symbolic
// links inside the image, and must not block when it opens what is no regular
// file.
//
// As with Docker, a number need not be in /etc/passwd; its group is then 0. With
// a GROUP there are no supplementary groups. A number does not need the files: it
// stands for itself where they cannot be opened. The error is ErrNotRegular where
// one of them is something else than a file.
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

// number reads an id.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= math.MaxInt32
}

// eachEntry reads lines of at least n fields until f says false. A file that is
// not there has none.
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
