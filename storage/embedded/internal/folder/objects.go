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

	"github.com/iterait/shepherd/internal/durable"
)

// Check looks at the object that a call is about to replace or delete, nil
// when there is none, and forbids that by returning an error. Nothing changes
// the object between the check and the call's effect.
type Check func(current *Info) error

// Put stores body as the object of a bucket and key, replacing an earlier one.
// A body that fails, or holds another number of bytes than size (-1: any),
// leaves everything as it was. complete, when not nil, is called when all of
// the body is on disk, to finish info's Attrs or refuse the object; its ETag is
// set by then: the one that is given, else the MD5 of the body.
func (s *Store) Put(bucket, key string, body io.Reader, size int64, info Info, complete func(*Info) error, check Check) (*Info, error) {
	return s.put(bucket, key, body, size, info, complete, check, false)
}

// PutLater is Put of an object that is whole for readers when it returns, and durable
// when Sync has returned after it. Until then a loss of power may leave the earlier
// object, none, or a damaged one, which the next Put replaces.
func (s *Store) PutLater(bucket, key string, body io.Reader, size int64, info Info, complete func(*Info) error) error {
	_, err := s.put(bucket, key, body, size, info, complete, nil, true)
	return err
}

func (s *Store) put(bucket, key string, body io.Reader, size int64, info Info, complete func(*Info) error, check Check, later bool) (*Info, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", key, err)
	}
	defer d.close()
	d.later = later
	if err := d.fill(body, size, info.ETag == ""); err != nil {
		return nil, fmt.Errorf("store %q: %w", key, err)
	}
	if info.ETag == "" {
		info.ETag = d.etag()
	}
	if complete != nil {
		if err := complete(&info); err != nil {
			return nil, err
		}
	}
	info.Key, info.Modified = key, now()
	return s.store(d, &info, at, check)
}

// Copy stores what src holds as another object, with src's ETag and checksum,
// and the Attrs of info.
func (s *Store) Copy(ctx context.Context, src *Object, bucket, key string, info Info, check Check) (*Info, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	if _, err := s.StatBucket(bucket); err != nil {
		return nil, err
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("copy to %q: %w", key, err)
	}
	defer d.close()
	info.Key, info.Modified = key, now()
	info.ETag, info.Parts = src.ETag, src.Parts
	if info.Checksum.Algorithm == "" {
		info.Checksum = src.Checksum
	}
	err = errNoLinks
	if src.Size >= s.linkAtLeast {
		if info.Data, info.Whole, err = s.linkData(ctx, src, bucket, key); err == nil {
			info.Size, info.Bucket = src.Size, bucket
		}
	}
	if errors.Is(err, errNoLinks) {
		err = d.appendObject(ctx, src)
	}
	if err != nil {
		return nil, fmt.Errorf("copy to %q: %w", key, err)
	}
	stored, err := s.store(d, &info, at, check)
	if err != nil {
		s.dropData(info.Data)
	}
	return stored, err
}

// store finishes a draft and makes it the object at a location.
func (s *Store) store(d *draft, info *Info, at location, check Check) (*Info, error) {
	if err := d.seal(info); err != nil {
		return nil, fmt.Errorf("store %q: %w", info.Key, err)
	}
	replaced, err := s.commit(d, info.Key, at, check)
	if err != nil {
		return nil, fmt.Errorf("store %q: %w", info.Key, err)
	}
	if replaced != info.Data {
		s.dropData(replaced)
	}
	return info, nil
}

// commit moves a finished draft to its location and makes that durable, unless that is
// left to Sync. It returns the id of the data of the object that it replaced.
func (s *Store) commit(d *draft, key string, at location, check Check) (replaced string, err error) {
	lock := s.bucketLock(filepath.Base(at.bucket))
	lock.RLock()
	st, err := os.Lstat(at.dir())
	if err == nil && s.index.serves(at.dir(), st.Size()) {
		defer lock.RUnlock()
		if replaced, err = s.replace(d, key, at, check); err != nil {
			return "", err
		}
		if d.later {
			s.unsynced.add(at)
			return replaced, nil
		}
		return replaced, durable.SyncDirs(at.dir())
	}
	lock.RUnlock()
	lock.Lock()
	defer lock.Unlock()
	return s.commitDeep(d, key, at, check)
}

// replace renames a draft to its location. The bucket's lock is held.
func (s *Store) replace(d *draft, key string, at location, check Check) (replaced string, err error) {
	lock := s.keyLock(at.path())
	lock.Lock()
	defer lock.Unlock()
	current, err := statFile(at.path(), key)
	if err != nil && !(check == nil && errors.Is(err, errFooter)) { // a damaged one may be overwritten
		return "", err
	}
	if check != nil {
		if err := check(current); err != nil {
			return "", err
		}
	}
	if current == nil {
		if err := s.index.add(at.dir(), at.file); err != nil {
			return "", err
		}
	} else {
		replaced = current.Data
	}
	return replaced, d.moveTo(at.path())
}

// commitDeep is commit for a location whose directories have to be made, or
// indexed. The bucket's lock is held for writing, so nobody builds on them until
// they are durable.
func (s *Store) commitDeep(d *draft, key string, at location, check Check) (replaced string, err error) {
	if _, err := os.Lstat(at.bucket); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%s: %w", filepath.Base(at.bucket), ErrNoBucket)
		}
		return "", err
	}
	changed := []string{at.dir()}
	dir := at.bucket
	for _, name := range at.below {
		parent := dir
		dir += "/" + name
		if _, err := os.Lstat(dir); err == nil {
			continue
		}
		if err = s.index.build(parent); err == nil {
			if err = s.index.add(parent, name); err == nil {
				err = os.Mkdir(dir, 0o700)
			}
		}
		if err != nil {
			s.prune(at.bucket, parent)
			return "", err
		}
		changed = append(changed, parent)
	}
	if err = s.index.build(at.dir()); err == nil {
		replaced, err = s.replace(d, key, at, check)
	}
	if err != nil {
		s.prune(at.bucket, at.dir())
		return "", err
	}
	if d.later {
		s.unsynced.add(at)
	}
	return replaced, durable.SyncDirs(changed...)
}

// prune removes dir and its parents up to the bucket's as far as they are
// empty. The bucket's lock is held for writing.
func (s *Store) prune(bucket, dir string) {
	for len(dir) > len(bucket) && os.Remove(dir) == nil {
		s.index.remove(filepath.Dir(dir), filepath.Base(dir))
		s.index.drop(dir)
		dir = filepath.Dir(dir)
	}
}

// Stat describes an object, or answers as Open does.
func (s *Store) Stat(bucket, key string) (*Info, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	info, err := statFile(at.path(), key)
	if err == nil && info == nil {
		if _, err = s.StatBucket(bucket); err == nil {
			err = fmt.Errorf("%q: %w", key, ErrNoKey)
		}
	}
	return info, err
}

// Delete deletes objects; one that is not there counts as deleted. It returns
// an error, or nil, for each key. check may be nil.
func (s *Store) Delete(ctx context.Context, bucket string, keys []string, check func(key string, current *Info) error) []error {
	errs := make([]error, len(keys))
	dirOf := make(map[int]string, len(keys))
	var changed, data []string
	lock := s.bucketLock(bucket)
	lock.RLock()
	for i, key := range keys {
		if errs[i] = ctx.Err(); errs[i] != nil {
			continue
		}
		at, err := s.locate(bucket, key)
		if err != nil {
			errs[i] = err
			continue
		}
		var removed bool
		var id string
		if removed, id, errs[i] = s.remove(key, at, check); removed {
			dirOf[i] = at.dir()
			changed = append(changed, at.dir())
			data = append(data, id)
		}
	}
	slices.Sort(changed)
	changed = slices.Compact(changed)
	failed := map[string]error{}
	for _, dir := range changed {
		if err := durable.SyncDirs(dir); err != nil {
			failed[dir] = fmt.Errorf("delete: %w", err)
		}
	}
	lock.RUnlock()
	for i, dir := range dirOf {
		errs[i] = failed[dir]
	}
	if len(failed) == 0 {
		for _, id := range data {
			s.dropData(id)
		}
	}
	s.pruneAll(bucket, changed)
	return errs
}

// remove unlinks one object's file and reports whether it was there, with the
// id of its data.
func (s *Store) remove(key string, at location, check func(string, *Info) error) (removed bool, data string, err error) {
	lock := s.keyLock(at.path())
	lock.Lock()
	defer lock.Unlock()
	current, err := statFile(at.path(), key)
	if err != nil && !(check == nil && errors.Is(err, errFooter)) { // a damaged one may be deleted
		return false, "", err
	}
	if check != nil {
		if err := check(key, current); err != nil {
			return false, "", err
		}
	}
	if current != nil {
		data = current.Data
	}
	err = unix.Unlink(at.path())
	switch {
	case err == nil:
		s.index.remove(at.dir(), at.file)
		return true, data, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, "", nil
	}
	return false, "", fmt.Errorf("delete %q: %w", key, err)
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
		s.prune(root, dir)
	}
}
