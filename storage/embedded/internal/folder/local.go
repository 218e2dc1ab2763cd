package folder

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// NewETag returns an ETag that is not a digest of data: the data is then not
// read a second time, or hashed, for one. Its form is that of a multipart
// upload, which clients do not compare with an MD5.
func NewETag() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b) + "-1"
}

// CreateBucketWith makes a bucket that holds one object, in one step: there is
// never one without the other. It returns ErrBucketExists when the bucket is
// there. complete is as for Put. dirs are directories, by their names, that are made at
// the bucket's top for objects to come, so that storing the first takes less.
func (s *Store) CreateBucketWith(bucket, key string, body io.Reader, size int64, info Info, complete func(*Info) error, dirs ...string) (*Info, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	dir := s.tmpName("bucket-")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
	}
	placed := false
	defer func() {
		if !placed {
			os.RemoveAll(dir)
		}
	}()
	for _, name := range dirs {
		if err := os.Mkdir(dir+"/"+name, 0o700); err != nil {
			return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
		}
	}
	changed := []string{dir}
	inner := dir
	for _, name := range at.below {
		inner += "/" + name
		if err := os.Mkdir(inner, 0o700); err != nil {
			return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
		}
		changed = append(changed, inner)
	}
	d, err := s.newDraftAt(inner + "/" + at.file)
	if err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
	}
	d.placed = true // it goes with its directory
	defer d.close()
	if err := d.fill(body, size, info.ETag == ""); err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
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
	if err := errors.Join(d.seal(&info), durable.SyncDirs(changed...)); err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
	}
	lock := s.bucketLock(bucket)
	lock.Lock()
	defer lock.Unlock()
	err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, s.bucketDir(bucket), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("%s: %w", bucket, ErrBucketExists)
	}
	if err == nil {
		placed = true
		err = s.names.Sync()
	}
	if err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", bucket, err)
	}
	return &info, nil
}
