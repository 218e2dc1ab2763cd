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

// UserName is what ResolveUser is to resolve: the sheep's user, or the image's.
func (cfg *Config) UserName() string {
	if cfg.Options.User != "" {
		return cfg.Options.User
	}
	return cfg.Image.User
}

// userSpec is a parsed USER[:GROUP].
type userSpec struct{ user, group string }

func parseUser(s string) (userSpec, error) {
	user, group, both := strings.Cut(s, ":")
	if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '\uFFFD' }) ||
		strings.Contains(group, ":") || both && (user == "" || group == "") {
		return userSpec{}, fmt.Errorf("%.100q is not USER or USER:GROUP", s)
	}
	return userSpec{user, group}, nil
}

// maxAccounts bounds what is read of an image's /etc/passwd and /etc/group,
// which come from a registry.
const maxAccounts = 1 << 20

// ResolveUser finds who USER[:GROUP] is in an image whose root is root; names and
// numbers may stand for either. Nobody is root. root must not follow symbolic
// links out of the image: os.Root's FS does not.
//
// As with Docker, a number need not be in /etc/passwd; its group is then 0. With
// a GROUP there are no supplementary groups.
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
	if err != nil {
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
	if err != nil {
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
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("user: the image's /%s is no file", name)
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
