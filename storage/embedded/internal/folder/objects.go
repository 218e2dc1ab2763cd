package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Check looks at the object that a call is about to replace or delete, nil
// when there is none, and forbids that by returning an error. Nothing changes
// the object between the check and the call's effect.
type Check func(current *Info) error

// Put stores body as the object of a bucket and key, replacing an earlier one.
// A body that fails, or holds another number of bytes than size (-1: any),
// leaves everything as it was. complete, when not nil, is called when all of
// the body is on disk, to finish info's Attrs or refuse the object; its ETag is
// set by then.
func (s *Store) Put(bucket, key string, body io.Reader, size int64, info Info, complete func(*Info) error, check Check) (*Info, error) {
	at, err := s.placeOf(bucket, key)
	if err != nil {
		return nil, err
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", key, err)
	}
	defer d.close()
	if err := d.fill(body, size); err != nil {
		return nil, fmt.Errorf("store %q: %w", key, err)
	}
	info.ETag = d.etag()
	if complete != nil {
		if err := complete(&info); err != nil {
			return nil, err
		}
	}
	info.Key, info.Modified = key, now()
	return s.place(d, &info, at, check)
}

// Copy stores what src holds as another object, with src's ETag, and the key
// and Attrs of info.
func (s *Store) Copy(src *Object, bucket, key string, info Info, check Check) (*Info, error) {
	at, err := s.placeOf(bucket, key)
	if err != nil {
		return nil, err
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("copy to %q: %w", key, err)
	}
	defer d.close()
	if err := d.append(src.File, 0, src.Size); err != nil {
		return nil, fmt.Errorf("copy to %q: %w", key, err)
	}
	info.Key, info.Modified = key, now()
	info.ETag, info.Parts = src.ETag, src.Parts
	return s.place(d, &info, at, check)
}

// place finishes a draft and makes it the object at a place.
func (s *Store) place(d *draft, info *Info, at place, check Check) (*Info, error) {
	if err := d.seal(info); err != nil {
		return nil, fmt.Errorf("store %q: %w", info.Key, err)
	}
	bucket := filepath.Base(at.bucket)
	lock := s.bucketLock(bucket)
	lock.RLock()
	_, err := os.Lstat(at.dir())
	if err == nil {
		defer lock.RUnlock()
		err = s.commit(d, bucket, info.Key, at, check, at.dir())
	} else {
		lock.RUnlock()
		lock.Lock()
		defer lock.Unlock()
		err = s.commitDeep(d, bucket, info.Key, at, check)
	}
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", info.Key, err)
	}
	return info, nil
}

// commit moves a finished draft to its place and makes the names in dirs
// durable. The bucket's lock is held.
func (s *Store) commit(d *draft, bucket, key string, at place, check Check, dirs ...string) error {
	err := func() error {
		lock := s.keyLock(bucket, key)
		lock.Lock()
		defer lock.Unlock()
		if check != nil {
			current, err := statObject(at.path(), key)
			if err != nil {
				return err
			}
			if err := check(current); err != nil {
				return err
			}
		}
		return d.moveTo(at.path())
	}()
	if err != nil {
		return err
	}
	return syncDirs(dirs...)
}

// commitDeep is commit for a place whose directories have to be made. The
// bucket's lock is held for writing, so nobody builds on them until they are
// durable.
func (s *Store) commitDeep(d *draft, bucket, key string, at place, check Check) error {
	if _, err := os.Lstat(at.bucket); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", bucket, ErrNoBucket)
		}
		return err
	}
	dirs := []string{at.dir()}
	dir := at.bucket
	for _, name := range at.below {
		parent := dir
		dir += "/" + name
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			dirs = append(dirs, parent)
		} else if !errors.Is(err, os.ErrExist) {
			prune(at.bucket, parent)
			return err
		}
	}
	err := s.commit(d, bucket, key, at, check, dirs...)
	if err != nil {
		prune(at.bucket, at.dir())
	}
	return err
}

// prune removes dir and its parents up to the bucket's as far as they are
// empty. The bucket's lock is held for writing.
func prune(bucket, dir string) {
	for len(dir) > len(bucket) && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}

// Open opens an object for reading, or answers ErrNoKey or ErrNoBucket.
func (s *Store) Open(bucket, key string) (*Object, error) {
	at, err := s.placeOf(bucket, key)
	if err != nil {
		return nil, err
	}
	o, err := openObject(at.path(), key)
	if errors.Is(err, ErrNoKey) {
		if there, err := s.BucketExists(bucket); err != nil || !there {
			return nil, errors.Join(fmt.Errorf("%s: %w", bucket, ErrNoBucket), err)
		}
	}
	return o, err
}

// Stat describes an object, or answers as Open does.
func (s *Store) Stat(bucket, key string) (*Info, error) {
	o, err := s.Open(bucket, key)
	if err != nil {
		return nil, err
	}
	return o.Info, o.Close()
}

// Delete deletes objects; one that is not there counts as deleted. It returns
// an error, or nil, for each key. check may be nil.
func (s *Store) Delete(ctx context.Context, bucket string, keys []string, check func(key string, current *Info) error) []error {
	errs := make([]error, len(keys))
	var changed []string // directories
	dirOf := make(map[int]string, len(keys))
	lock := s.bucketLock(bucket)
	lock.RLock()
	for i, key := range keys {
		if errs[i] = ctx.Err(); errs[i] != nil {
			continue
		}
		at, err := s.placeOf(bucket, key)
		if err != nil {
			errs[i] = err
			continue
		}
		var gone bool
		if gone, errs[i] = s.remove(bucket, key, at, check); gone {
			dirOf[i] = at.dir()
			changed = append(changed, at.dir())
		}
	}
	slices.Sort(changed)
	changed = slices.Compact(changed)
	failed := map[string]error{}
	for _, dir := range changed {
		if err := syncDirs(dir); err != nil {
			failed[dir] = fmt.Errorf("delete: %w", err)
		}
	}
	lock.RUnlock()
	for i, dir := range dirOf {
		errs[i] = failed[dir]
	}
	s.pruneAll(bucket, changed)
	return errs
}

// remove unlinks one object's file and reports whether it was there.
func (s *Store) remove(bucket, key string, at place, check func(string, *Info) error) (bool, error) {
	lock := s.keyLock(bucket, key)
	lock.Lock()
	defer lock.Unlock()
	if check != nil {
		current, err := statObject(at.path(), key)
		if err != nil {
			return false, err
		}
		if err := check(key, current); err != nil {
			return false, err
		}
	}
	err := unix.Unlink(at.path())
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	}
	return false, fmt.Errorf("delete %q: %w", key, err)
}

// pruneAll removes directories that a deletion left empty.
func (s *Store) pruneAll(bucket string, dirs []string) {
	root := s.bucketDir(bucket)
	dirs = slices.DeleteFunc(dirs, func(d string) bool { return !strings.HasPrefix(d, root+"/") })
	if len(dirs) == 0 {
		return
	}
	lock := s.bucketLock(bucket)
	lock.Lock()
	defer lock.Unlock()
	for _, dir := range slices.Backward(dirs) { // the deepest first
		prune(root, dir)
	}
}
