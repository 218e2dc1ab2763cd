package folder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Query says what to list of a bucket.
type Query struct {
	Prefix    string // keys that begin so
	Delimiter string // keys with it after the prefix are rolled up; "": none
	After     string // what sorts after it; a key, or an Item's Prefix
	Max       int    // items at most
}

// Item is an object, or a Prefix that stands for all keys that begin with it.
type Item struct {
	*Info
	Prefix string
}

// Page is a part of a listing, in key order. Next continues it: Query.After of
// the following page; "" at the end.
type Page struct {
	Items []Item
	Next  string
}

// List lists objects. What is stored or deleted meanwhile may or may not be in
// it.
func (s *Store) List(ctx context.Context, bucket string, q Query) (Page, error) {
	if there, err := s.BucketExists(bucket); err != nil || !there {
		return Page{}, errors.Join(fmt.Errorf("%s: %w", bucket, ErrNoBucket), err)
	}
	l := lister{ctx: ctx, log: s.log, query: q}
	if q.Delimiter != "" && strings.HasSuffix(q.After, q.Delimiter) && l.rollUp(q.After) == q.After {
		l.skip = q.After
	}
	// The prefix up to its last slash is a directory: begin there.
	dir, base := s.bucketDir(bucket), ""
	if i := strings.LastIndexByte(q.Prefix, '/'); i >= 0 {
		base = q.Prefix[:i+1]
		below, last := split(base)
		if last != "" || len(base) > MaxKey {
			return Page{}, nil
		}
		dir = strings.Join(append([]string{dir}, below...), "/")
	}
	if _, err := l.walk(dir, base); err != nil {
		return Page{}, fmt.Errorf("list bucket %s: %w", bucket, err)
	}
	return l.page, nil
}

// lister walks the tree below a directory in key order.
type lister struct {
	ctx   context.Context
	log   *slog.Logger
	query Query
	page  Page
	last  string // the last item's key or prefix
	skip  string // a rolled-up prefix: all its keys are dealt with
}

// rollUp returns the common prefix that stands for a key, or "".
func (l *lister) rollUp(key string) string {
	if l.query.Delimiter == "" || !strings.HasPrefix(key, l.query.Prefix) {
		return ""
	}
	rest := key[len(l.query.Prefix):]
	i := strings.Index(rest, l.query.Delimiter)
	if i < 0 {
		return ""
	}
	return key[:len(l.query.Prefix)+i+len(l.query.Delimiter)]
}

// skips reports whether no key that begins so is to be listed (object: that
// key alone).
func (l *lister) skips(begins string, object bool) bool {
	q := l.query
	if l.skip != "" && strings.HasPrefix(begins, l.skip) {
		return true
	}
	if object {
		return !strings.HasPrefix(begins, q.Prefix) || begins <= q.After
	}
	if !strings.HasPrefix(begins, q.Prefix) && !strings.HasPrefix(q.Prefix, begins) {
		return true
	}
	return begins <= q.After && !strings.HasPrefix(q.After, begins)
}

// walk lists dir, whose keys all begin with base. It answers false when the
// page is full.
func (l *lister) walk(dir, base string) (bool, error) {
	if err := l.ctx.Err(); err != nil {
		return false, err
	}
	entries, err := readDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		begins := base + e.begins
		if l.skips(begins, e.object) {
			continue
		}
		path := dir + "/" + e.file
		more := true
		if e.object {
			more, err = l.add(path, begins)
		} else {
			more, err = l.walk(path, begins)
		}
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// add takes up the object of a key.
func (l *lister) add(path, key string) (bool, error) {
	item := Item{Prefix: l.rollUp(key)}
	if item.Prefix == "" {
		info, err := statObject(path, key)
		if errors.Is(err, errFooter) { // must not hide the others
			l.log.Error("an object is damaged and left out of a listing; restore or remove its file", "file", path, "error", err)
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if info == nil {
			return true, nil // deleted meanwhile
		}
		item.Info = info
	}
	if len(l.page.Items) >= l.query.Max {
		l.page.Next = l.last
		return false, nil
	}
	l.last, l.skip = key, ""
	if item.Prefix != "" {
		l.last, l.skip = item.Prefix, item.Prefix
	}
	l.page.Items = append(l.page.Items, item)
	return true, nil
}

// holdsObject reports whether any object lies below dir.
func holdsObject(dir string) (bool, error) {
	entries, err := readDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.object {
			return true, nil
		}
		if full, err := holdsObject(dir + "/" + e.file); full || err != nil {
			return full, err
		}
	}
	return false, nil
}

// readDir returns a directory's entries in key order; none when it is not
// there, as happens to one that is pruned meanwhile.
func readDir(dir string) ([]entry, error) {
	f, err := os.Open(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(names))
	for _, name := range names {
		if e, ok := decode(name); ok {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.begins, b.begins) })
	return entries, nil
}
