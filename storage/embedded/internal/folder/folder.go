// Package folder keeps buckets of objects in a directory, durably.
//
// # Layout
//
//	lock                          held while a Store is open
//	buckets/<bucket>/…            objects; see names.go for how keys become paths
//	uploads/<id>/upload, part-N   multipart uploads not yet completed
//	tmp/                          what is being written; emptied by Open
//
// The directory tree is the only index: nothing about buckets or objects is
// held in memory, so Open takes as long with a hundred thousand buckets as
// with one, and a listing reads the directories it lists.
//
// # Promises
//
// An object is one file: its data followed by a footer that describes it. It
// is written in tmp/, fsynced, and renamed into its place, whose directory is
// fsynced before the call returns. So an object is there whole or not at all,
// what a call acknowledged survives a power cut, and a reader goes on reading
// the object it opened when that is overwritten or deleted meanwhile.
package folder

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Errors that callers match. Errors of the disk are returned wrapped as they
// are: see IsFull.
var (
	ErrNoBucket       = fmt.Errorf("no such bucket: %w", errdefs.ErrNotFound)
	ErrBucketExists   = fmt.Errorf("the bucket exists: %w", errdefs.ErrAlreadyExists)
	ErrBucketNotEmpty = fmt.Errorf("the bucket is not empty: %w", errdefs.ErrFailedPrecondition)
	ErrNoKey          = fmt.Errorf("no such key: %w", errdefs.ErrNotFound)
	ErrBadKey         = fmt.Errorf("not a key: %w", errdefs.ErrInvalidArgument)
	ErrShortBody      = fmt.Errorf("the body has another length than announced: %w", errdefs.ErrInvalidArgument)
	ErrNoUpload       = fmt.Errorf("no such upload: %w", errdefs.ErrNotFound)
	ErrBadPart        = fmt.Errorf("no such part: %w", errdefs.ErrInvalidArgument)
	ErrPartOrder      = fmt.Errorf("the parts are not in ascending order: %w", errdefs.ErrInvalidArgument)
	ErrInUse          = fmt.Errorf("in use by another process: %w", errdefs.ErrFailedPrecondition)
)

// IsFull reports whether err says that the disk, its inodes or a quota is full.
func IsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// stripes bounds the number of locks, whatever the number of buckets and keys.
const stripes = 256

// Store is an open directory. It is safe for any number of goroutines.
type Store struct {
	dir  string
	log  *slog.Logger
	lock *os.File
	seed maphash.Seed

	// A bucket's lock is held for reading while an object's file changes in it,
	// for writing while its directories do. A key's lock makes a precondition
	// and the rename that follows it one step; it is taken after the bucket's.
	// An upload's lock is held for writing while it ends.
	bucketLocks [stripes]sync.RWMutex
	keyLocks    [stripes]sync.Mutex
	uploadLocks [stripes]sync.RWMutex
}

// Open opens dir, making it where needed, and puts right what an earlier
// process left behind: unfinished files go, and if it was killed, all that is
// visible is made durable. It answers ErrInUse while another process has dir open.
func Open(dir string, log *slog.Logger) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open storage directory %s: %w", dir, err)
	}
	s := &Store{dir: abs, log: log, seed: maphash.MakeSeed()}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open storage directory %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() (err error) {
	for _, sub := range []string{s.dir, s.bucketsDir(), s.uploadsDir(), s.tmpDir()} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
	}
	killed, err := s.takeLock()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	litter, err := os.ReadDir(s.tmpDir())
	if err != nil {
		return err
	}
	for _, l := range litter {
		if err := os.RemoveAll(filepath.Join(s.tmpDir(), l.Name())); err != nil {
			return err
		}
	}
	if !killed {
		return nil
	}
	// A process killed between a rename and its fsync left a name that is
	// visible but perhaps not on disk. What builds on it from now on must not
	// stand on sand.
	root, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}

// Close lets another process open the directory. Calls under way must have
// returned. It may be called twice.
func (s *Store) Close() error {
	err := s.lock.Truncate(0)
	if err := errors.Join(err, s.lock.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close storage directory %s: %w", s.dir, err)
	}
	return nil
}

// takeLock takes the lock that tells a second process to keep out. It goes with
// its holder, however that ends; only one that closes the store takes its
// process id out of the file, so takeLock can tell whether the last was killed.
func (s *Store) takeLock() (killed bool, err error) {
	path := filepath.Join(s.dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	busy := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if busy != nil && !errors.Is(busy, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("lock %s: %w", path, busy)
	}
	last, err := io.ReadAll(f)
	if err != nil {
		return false, err
	}
	if busy != nil {
		return false, fmt.Errorf("%w (process %s); stop it or choose another directory", ErrInUse, strings.TrimSpace(string(last)))
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return false, fmt.Errorf("write %s: %w", path, err)
	}
	s.lock = f
	return len(last) > 0, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func (s *Store) bucketsDir() string { return filepath.Join(s.dir, "buckets") }
func (s *Store) uploadsDir() string { return filepath.Join(s.dir, "uploads") }
func (s *Store) tmpDir() string     { return filepath.Join(s.dir, "tmp") }

func (s *Store) bucketLock(bucket string) *sync.RWMutex {
	return &s.bucketLocks[maphash.String(s.seed, bucket)%stripes]
}

func (s *Store) keyLock(bucket, key string) *sync.Mutex {
	return &s.keyLocks[maphash.String(s.seed, bucket+"/"+key)%stripes]
}

func (s *Store) uploadLock(id string) *sync.RWMutex {
	return &s.uploadLocks[maphash.String(s.seed, id)%stripes]
}

// discard takes a directory out of sight in one step, then removes it. What a
// kill leaves of it lies in tmp/, where the next Open finishes the job.
func (s *Store) discard(dir string) error {
	grave, err := os.MkdirTemp(s.tmpDir(), "gone-")
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(grave, "d")); err != nil {
		os.Remove(grave)
		return err
	}
	if err := syncDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	return os.RemoveAll(grave)
}

// syncDirs makes the names in the directories durable. Directories one
// operation changed are synced together at its end: the file system then
// writes its journal once.
func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Bucket is a bucket's name and when it was made.
type Bucket struct {
	Name    string
	Created time.Time
}

// Buckets returns all buckets, by name.
func (s *Store) Buckets(ctx context.Context) ([]Bucket, error) {
	entries, err := os.ReadDir(s.bucketsDir())
	if err != nil {
		return nil, fmt.Errorf("list buckets: %w", err)
	}
	buckets := make([]Bucket, 0, len(entries))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(s.bucketsDir(), e.Name()), 0, unix.STATX_BTIME|unix.STATX_MTIME, &st)
		if errors.Is(err, unix.ENOENT) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list buckets: %s: %w", e.Name(), err)
		}
		born := st.Btime
		if st.Mask&unix.STATX_BTIME == 0 { // not every file system knows
			born = st.Mtime
		}
		buckets = append(buckets, Bucket{Name: e.Name(), Created: time.Unix(born.Sec, int64(born.Nsec))})
	}
	return buckets, nil
}

// CreateBucket makes a bucket, or answers ErrBucketExists. The name must be
// one that ValidBucket accepts.
func (s *Store) CreateBucket(name string) error {
	if !ValidBucket(name) {
		return fmt.Errorf("create bucket %q: %w", name, errdefs.ErrInvalidArgument)
	}
	lock := s.bucketLock(name)
	lock.Lock()
	defer lock.Unlock()
	if err := os.Mkdir(s.bucketDir(name), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s: %w", name, ErrBucketExists)
		}
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	if err := syncDirs(s.bucketsDir()); err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	return nil
}

// BucketExists reports whether there is such a bucket.
func (s *Store) BucketExists(name string) (bool, error) {
	if !ValidBucket(name) {
		return false, nil
	}
	_, err := os.Lstat(s.bucketDir(name))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// DeleteBucket removes a bucket without objects, and the uploads to it. It
// answers ErrBucketNotEmpty or ErrNoBucket.
func (s *Store) DeleteBucket(name string) error {
	lock := s.bucketLock(name)
	lock.Lock()
	defer lock.Unlock()
	if there, err := s.BucketExists(name); err != nil || !there {
		return errors.Join(fmt.Errorf("%s: %w", name, ErrNoBucket), err)
	}
	full, err := holdsObject(s.bucketDir(name))
	if err != nil {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	if full {
		return fmt.Errorf("%s: %w", name, ErrBucketNotEmpty)
	}
	if err := s.discard(s.bucketDir(name)); err != nil {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	uploads, err := s.Uploads(name)
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if err := s.AbortUpload(name, u.Key, u.ID); err != nil && !errors.Is(err, ErrNoUpload) {
			return err
		}
	}
	return nil
}
