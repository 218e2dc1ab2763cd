package folder

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// index keeps the entries of large directories in key order, so that a page of
// a listing costs what the page holds and not what the directory holds. Small
// directories are read and sorted as they are asked for; one is indexed when it
// grows over indexAtBytes.
//
// The index is a cache of the directory tree: what it knows is never less than
// what is there. An entry is added before its file is renamed into place and
// removed after its file is gone; a listing looks at each file anyway, and has
// entries removed that lead nowhere. So it survives a killed process without
// being synced. After a crash of the machine it is discarded, and built again
// for each large directory when that is listed or written to.
type index struct {
	path string // of the database
	root string // that directories are named relative to
	log  *slog.Logger

	atBytes   int64 // the size of a directory, as the file system tells it, that is indexed
	atEntries int   // the same in entries, where the file system tells another size
	perPage   int   // entries that are read in one transaction

	mu     sync.Mutex
	db     *bbolt.DB // nil until a large directory is met
	absent bool      // there is no database
}

func newIndex(root string, log *slog.Logger) *index {
	return &index{
		path: filepath.Join(root, "index.db"), root: root, log: log,
		atBytes:   256 << 10, // some thousand entries
		atEntries: 10_000, perPage: 1000,
	}
}

// open returns the database; nil when there is none and create is false.
func (x *index) open(create bool) (*bbolt.DB, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db != nil {
		return x.db, nil
	}
	if !create {
		if !x.absent {
			_, err := os.Lstat(x.path)
			x.absent = errors.Is(err, os.ErrNotExist)
		}
		if x.absent {
			return nil, nil
		}
	}
	options := bbolt.Options{Timeout: time.Second, NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}
	db, err := bbolt.Open(x.path, 0o600, &options)
	if err != nil { // it is a cache: begin again
		x.log.Warn("the index of large directories cannot be read and is built again", "file", x.path, "error", err)
		if err := os.Remove(x.path); err != nil {
			return nil, err
		}
		if db, err = bbolt.Open(x.path, 0o600, &options); err != nil {
			return nil, err
		}
	}
	x.db = db
	return db, nil
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db == nil {
		return nil
	}
	err := errors.Join(x.db.Sync(), x.db.Close())
	x.db = nil
	return err
}

// discard removes the index, before it is first used.
func (x *index) discard() error {
	err := os.Remove(x.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// name is what a directory is called in the database.
func (x *index) name(dir string) []byte { return []byte(strings.TrimPrefix(dir, x.root)) }

// has reports whether a directory is indexed.
func (x *index) has(dir string) bool {
	db, err := x.open(false)
	if db == nil || err != nil {
		return false
	}
	found := false
	_ = db.View(func(tx *bbolt.Tx) error { // its only error is that of this function
		found = tx.Bucket(x.name(dir)) != nil
		return nil
	})
	return found
}

// serves reports whether entries can be added to a directory of this size as it
// is: it is small, or indexed.
func (x *index) serves(dir string, size int64) bool { return size < x.atBytes || x.has(dir) }

// build indexes a directory if it is large and not indexed. The bucket's lock is
// held for writing.
func (x *index) build(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil || x.serves(dir, st.Size()) {
		return err
	}
	return x.rebuild(dir)
}

// rebuild indexes a directory. The bucket's lock is held for writing.
func (x *index) rebuild(dir string) error {
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	db, err := x.open(true)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(x.name(dir))
		if err != nil {
			return err
		}
		b.FillPercent = 0.9 // they come in order
		for _, e := range entries {
			if err := b.Put(indexKey(e), []byte(e.file)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index %s: %w", dir, err)
	}
	return nil
}

// indexKey is what an entry is sorted by. Only the empty part of a key begins
// with nothing, which a database's key cannot; all keys get a byte before them.
func indexKey(e entry) []byte { return append([]byte{'/'}, e.begins...) }

// add makes a file known. It does nothing for a directory that is not indexed.
func (x *index) add(dir, file string) error {
	e, ok := decode(file)
	if !ok || !x.has(dir) {
		return nil
	}
	return x.update(dir, func(b *bbolt.Bucket) error { return b.Put(indexKey(e), []byte(file)) })
}

// remove makes a file unknown that is gone. One that stays known does no harm.
func (x *index) remove(dir, file string) {
	e, ok := decode(file)
	if !ok || !x.has(dir) {
		return
	}
	if err := x.update(dir, func(b *bbolt.Bucket) error { return b.Delete(indexKey(e)) }); err != nil {
		x.log.Warn("the index of a large directory names a file that does not exist", "dir", dir, "file", file, "error", err)
	}
}

func (x *index) update(dir string, change func(*bbolt.Bucket) error) error {
	db, err := x.open(false)
	if err != nil || db == nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(x.name(dir))
		if b == nil {
			return nil
		}
		return change(b)
	})
	if err != nil {
		return fmt.Errorf("index %s: %w", dir, err)
	}
	return nil
}

// drop removes what is known of a directory that is gone.
func (x *index) drop(dir string) {
	if x.has(dir) {
		x.dropTree(dir)
	}
}

// dropTree removes what is known of a directory that is gone, and of those below.
func (x *index) dropTree(dir string) {
	db, err := x.open(false)
	if db == nil && err == nil {
		return
	}
	if err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			var names [][]byte
			prefix := x.name(dir)
			for name, _ := tx.Cursor().Seek(prefix); bytes.HasPrefix(name, prefix); name, _ = tx.Cursor().Seek(append(bytes.Clone(name), 0)) {
				if len(name) == len(prefix) || name[len(prefix)] == '/' {
					names = append(names, bytes.Clone(name))
				}
			}
			for _, name := range names {
				if err := tx.DeleteBucket(name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		x.log.Warn("the index of a removed directory stays", "dir", dir, "error", err)
	}
}

// page returns the next entries of an indexed directory, from the one that
// begins with from on, and whether the directory is indexed.
func (x *index) page(dir, from string) (entries []entry, indexed bool, err error) {
	db, err := x.open(false)
	if db == nil || err != nil {
		return nil, false, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(x.name(dir))
		if b == nil {
			return nil
		}
		indexed = true
		c := b.Cursor()
		for key, file := c.Seek(append([]byte{'/'}, from...)); key != nil && len(entries) < x.perPage; key, file = c.Next() {
			if e, ok := decode(string(file)); ok {
				entries = append(entries, e)
			}
		}
		return nil
	})
	return entries, indexed, err
}

// readDir returns a directory's entries in key order; none when it is not
// there, as happens to one that is pruned meanwhile.
func readDir(dir string) ([]entry, error) {
	f, err := openDir(dir)
	if f == nil || err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !isNoDir(err) {
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
