package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// Query says what to list of a bucket.
type Query struct {
	Prefix    string // keys that begin so
	Delimiter string // keys with it after the prefix are rolled up; "": none
	After     string // what sorts after it; a key, or an Item's Prefix
	Max       int    // items at most
	Damaged   bool   // also damaged objects, which are left out otherwise
}

// Item is an object, or a Prefix that stands for all keys that begin with it.
type Item struct {
	*Info
	Prefix  string
	Damaged bool // it cannot be read, and nothing is known of it but its Key and Modified
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
	if _, err := s.StatBucket(bucket); err != nil {
		return Page{}, err
	}
	l := lister{ctx: ctx, store: s, bucket: bucket, query: q}
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
	s.removeStale(bucket, l.stale)
	return l.page, nil
}

// lister walks the tree below a directory in key order.
type lister struct {
	ctx    context.Context
	store  *Store
	bucket string
	query  Query
	page   Page
	last   string   // the last item's key or prefix
	skip   string   // a rolled-up prefix: all its keys are dealt with
	stale  []string // what the index knows and is not there
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

// from returns a lower bound of what the entries begin with that are to be
// listed of a directory whose keys begin with base.
func (l *lister) from(base string) string {
	from := ""
	for _, bound := range []string{l.query.Prefix, l.query.After} {
		rest, ok := strings.CutPrefix(bound, base)
		if !ok || !utf8.ValidString(rest) {
			continue
		}
		// Where the bound lies in a directory below, that is the first entry.
		if below, _ := split(rest); len(below) > 0 {
			if e, ok := decode(below[0]); ok {
				rest = e.begins
			}
		}
		from = max(from, rest)
	}
	return from
}

// walk lists dir, whose keys all begin with base. It returns false when the
// page is full.
func (l *lister) walk(dir, base string) (bool, error) {
	entries, indexed, err := l.entries(dir, base)
	for err == nil {
		var more bool
		for _, e := range entries {
			if err := l.ctx.Err(); err != nil {
				return false, err
			}
			begins := base + e.begins
			if l.skips(begins, e.object) {
				continue
			}
			path := dir + "/" + e.file
			if e.object {
				more, err = l.add(path, begins, indexed)
			} else {
				before := l.seen()
				more, err = l.walk(path, begins)
				if indexed && more && l.seen() == before {
					l.lookStale(path)
				}
			}
			if err != nil || !more {
				return false, err
			}
		}
		if !indexed || len(entries) < l.store.index.perPage {
			return true, nil
		}
		next := entries[len(entries)-1].begins + "\x00"
		if rest, ok := strings.CutPrefix(l.skip, base); ok && l.skip != "" {
			next = max(next, after(rest))
		}
		entries, _, err = l.store.index.page(dir, next)
	}
	return false, err
}

// after is what sorts after all that begins with prefix.
func after(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return prefix
}

// seen changes with every key that is listed.
func (l *lister) seen() string { return l.last + "\x00" + l.skip }

// lookStale notes an entry of the index that leads nowhere.
func (l *lister) lookStale(path string) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		l.stale = append(l.stale, path)
	}
}

// entries returns the first entries of a directory that are to be listed, all
// of them when it is not indexed. A large directory is indexed first.
func (l *lister) entries(dir, base string) (entries []entry, indexed bool, err error) {
	from := l.from(base)
	if entries, indexed, err = l.store.index.page(dir, from); indexed || err != nil {
		return entries, indexed, err
	}
	if entries, err = readDir(dir); err != nil || len(entries) < l.store.index.atEntries {
		return entries, false, err
	}
	lock := l.store.bucketLock(l.bucket)
	lock.Lock()
	err = l.store.index.rebuild(dir)
	lock.Unlock()
	if err != nil {
		return nil, false, err
	}
	return l.store.index.page(dir, from)
}

// removeStale has the index forget what is not there.
func (s *Store) removeStale(bucket string, paths []string) {
	if len(paths) == 0 {
		return
	}
	lock := s.bucketLock(bucket)
	lock.Lock()
	defer lock.Unlock()
	for _, path := range paths {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			s.index.remove(filepath.Dir(path), filepath.Base(path))
		}
	}
}

// add lists the object of a key. It returns false when the page is full.
func (l *lister) add(path, key string, indexed bool) (bool, error) {
	item := Item{Prefix: l.rollUp(key)}
	if item.Prefix == "" || indexed {
		info, err := statFile(path, key)
		if errors.Is(err, errFooter) { // must not hide the others
			l.store.log.Error("an object is damaged", "bucket", l.bucket, "key", key, "file", path, "error", err)
			if !l.query.Damaged {
				return true, nil
			}
			info, item.Damaged, err = &Info{Key: key}, true, nil
			if stat, err := os.Lstat(path); err == nil {
				info.Modified = stat.ModTime()
			}
		}
		if err != nil {
			return false, err
		}
		if info == nil { // deleted meanwhile
			if indexed {
				l.lookStale(path)
			}
			return true, nil
		}
		if item.Prefix == "" {
			item.Info = info
		}
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
	f, err := openDir(dir)
	if f == nil || err != nil {
		return false, err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(100)
		for _, name := range names {
			e, ok := decode(name)
			if !ok {
				continue
			}
			if e.object {
				return true, nil
			}
			if full, err := holdsObject(dir + "/" + e.file); full || err != nil {
				return full, err
			}
		}
		if errors.Is(err, io.EOF) || isNoDir(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// openDir opens a directory; nil when there is none.
func openDir(dir string) (*os.File, error) {
	f, err := durable.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if isNoDir(err) {
		return nil, nil
	}
	return f, err
}

// isNoDir reports whether an error says that there is no such directory.
func isNoDir(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG)
}
