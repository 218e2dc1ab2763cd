// Package folder keeps buckets of objects in a directory, durably.
//
// # Layout
//
//	lock                                   held while a Store is open
//	buckets/<bucket>/…                     objects; names.go says how keys become paths
//	uploads/<bucket>/<id>/upload, part-N   multipart uploads not yet completed
//	parts/<id>/upload, part-N              the data of objects that lie in several files
//	settings/<bucket>                      what is configured of a bucket, as JSON
//	index.db                               the entries of large directories, in order; a cache
//	tmp/<random>/                          what is being written; tmp/ is emptied by Open
//
// Nothing about buckets or objects is held in memory, so Open takes as long with
// a hundred thousand buckets as with one. The directory tree is the truth; the
// index (index.go) only saves sorting a large directory for every page of it.
//
// # Promises
//
// An object's file holds its data followed by a footer that describes it. It is
// written in tmp/, fsynced, and renamed into its place, whose directory is
// fsynced before the call returns. So an object is there whole or not at all,
// what a call acknowledged survives a power cut, and a reader goes on reading
// the object it opened when that is overwritten or deleted meanwhile. Objects that
// PutLater stores are the exception: Sync makes many of them durable at once.
//
// The data of a completed multipart upload stays in its parts' files, and the
// object's file holds the footer alone: completing takes as long for a terabyte
// as for a megabyte, and no more room. Copies of large objects share their data
// by hard links. See data.go.
package folder

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
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
	dir   string
	log   *slog.Logger
	lock  *durable.FileLock
	seed  maphash.Seed
	index *index
	data  dataReaders
	// names makes the names of buckets durable.
	names *durable.SharedSync
	// unsynced are the objects that PutLater stored.
	unsynced unsynced
	// tmp is this process's directory in tmp/, and drafts counts the names given out
	// in it.
	tmp    string
	drafts atomic.Int64
	// linkAtLeast is the size from which on a copy shares its data with the original.
	linkAtLeast int64

	// A bucket's lock is held for reading while an object's file changes in it,
	// for writing while its directories do. A key's lock makes a precondition
	// and the rename that follows it one step; it is taken after the bucket's.
	// An upload's lock is held for writing while it ends; it is taken before the
	// bucket's.
	bucketLocks [stripes]sync.RWMutex
	keyLocks    [stripes]sync.Mutex
	uploadLocks [stripes]sync.RWMutex
}

// Open opens dir, making it where needed, and repairs what an earlier process
// left behind: unfinished files are removed, and if it was killed, all that is
// visible is made durable and data without an object is removed. It returns
// ErrInUse while another process has dir open.
func Open(dir string, log *slog.Logger) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open storage directory %s: %w", dir, err)
	}
	s := &Store{dir: abs, log: log, seed: maphash.MakeSeed(), linkAtLeast: linkAtLeast}
	s.names = durable.NewSharedSync(func() error { return durable.SyncDirs(s.bucketsDir()) })
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open storage directory %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := makeDirs(s.dir); err != nil {
		return err
	}
	durable.Spread(s.dir)
	for _, sub := range []string{s.bucketsDir(), s.uploadsDir(), s.partsDir(), s.settingsDir(), s.tmpRoot()} {
		if err := makeDirs(sub); err != nil {
			return err
		}
	}
	last, err := s.takeLock()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if err := s.openTmp(); err != nil {
		return err
	}
	s.index = newIndex(s.dir, s.log)
	if last.pid == "" {
		return nil
	}
	if last.boot != bootID() {
		// The machine stopped since: the index was never synced.
		if err := s.index.discard(); err != nil {
			return err
		}
	}
	return s.repair()
}

// openTmp empties tmp/ and makes this process's directory in it. Its name is random
// since ext4 places a directory by its name: in one of the same name, a store that is
// made, removed and made again would create its files where it has just freed many,
// which is slow (see durable.Spread).
func (s *Store) openTmp() error {
	root := s.tmpRoot()
	unfinished, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, f := range unfinished {
		if err := os.RemoveAll(filepath.Join(root, f.Name())); err != nil {
			return err
		}
	}
	durable.Spread(root)
	s.tmp, err = os.MkdirTemp(root, "")
	return err
}

// repair makes durable what a killed process left. One killed between a rename
// and its fsync left a name that is visible but perhaps not on disk; what builds
// on it from now on must not be lost with it.
func (s *Store) repair() error {
	if err := s.syncAll(); err != nil {
		return err
	}
	return s.repairData()
}

// makeDirs makes dir with its missing parents, and makes each durable in its
// own parent.
func makeDirs(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return durable.SyncDirs(parent)
}

// Close lets another process open the directory. Calls under way must have
// returned. It may be called twice.
func (s *Store) Close() error {
	err := s.index.close()
	if err == nil {
		_ = os.Remove(s.tmp) // the next Open removes one that is not empty
		err = s.lock.Clear()
	}
	if err := errors.Join(err, s.lock.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close storage directory %s: %w", s.dir, err)
	}
	return nil
}

// owner is what the lock file says of the process that opened the directory
// last and did not close it; zero after one that did.
type owner struct{ pid, boot string }

// takeLock takes the lock that keeps a second process out. The kernel releases
// it when its holder ends, however that ends; only one that closes the store
// empties the file, so takeLock can tell whether the last was killed.
func (s *Store) takeLock() (last owner, err error) {
	path := filepath.Join(s.dir, "lock")
	lock, was, err := durable.Lock(path, 0)
	var busy *durable.BusyError
	if errors.As(err, &busy) {
		pid, _, _ := strings.Cut(busy.Text, " ")
		return last, fmt.Errorf("%w (process %s); stop it or choose another directory", ErrInUse, pid)
	}
	if err != nil {
		return last, err
	}
	last.pid, last.boot, _ = strings.Cut(was, " ")
	if err := lock.SetText(strconv.Itoa(os.Getpid()) + " " + bootID()); err != nil {
		lock.Close()
		return last, fmt.Errorf("write %s: %w", path, err)
	}
	s.lock = lock
	return last, nil
}

// bootID changes with every start of the machine; "" where it is not known.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (s *Store) bucketsDir() string  { return filepath.Join(s.dir, "buckets") }
func (s *Store) uploadsDir() string  { return filepath.Join(s.dir, "uploads") }
func (s *Store) partsDir() string    { return filepath.Join(s.dir, "parts") }
func (s *Store) settingsDir() string { return filepath.Join(s.dir, "settings") }
func (s *Store) tmpRoot() string     { return filepath.Join(s.dir, "tmp") }

func (s *Store) bucketLock(bucket string) *sync.RWMutex {
	return &s.bucketLocks[maphash.String(s.seed, bucket)%stripes]
}

func (s *Store) keyLock(path string) *sync.Mutex {
	return &s.keyLocks[maphash.String(s.seed, path)%stripes]
}

func (s *Store) uploadLock(id string) *sync.RWMutex {
	return &s.uploadLocks[maphash.String(s.seed, id)%stripes]
}

// discard removes a directory: it disappears in one step, then its files are
// removed. What a kill leaves of it lies in tmp/, which the next Open empties.
func (s *Store) discard(dir string) error {
	trash, err := s.moveToTrash(dir)
	if err != nil {
		return err
	}
	if err := durable.SyncDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	return os.RemoveAll(trash)
}

// moveToTrash moves a directory below tmp/ and returns where it is now.
func (s *Store) moveToTrash(dir string) (string, error) {
	trash, err := os.MkdirTemp(s.tmp, "trash-")
	if err != nil {
		return "", err
	}
	if err := os.Rename(dir, filepath.Join(trash, "d")); err != nil {
		os.Remove(trash)
		return "", err
	}
	return trash, nil
}

// Bucket is a bucket's name and when it was made.
type Bucket struct {
	Name    string
	Created time.Time
}

// Buckets returns at most limit buckets that begin with prefix and sort after
// after, by name, and whether there are more.
func (s *Store) Buckets(ctx context.Context, prefix, after string, limit int) (buckets []Bucket, more bool, err error) {
	dir, err := os.Open(s.bucketsDir())
	if err != nil {
		return nil, false, fmt.Errorf("list buckets: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, false, fmt.Errorf("list buckets: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name <= after || !strings.HasPrefix(name, prefix) })
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if len(buckets) == limit {
			return buckets, true, nil
		}
		b, err := s.StatBucket(name)
		if errors.Is(err, ErrNoBucket) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, false, fmt.Errorf("list buckets: %w", err)
		}
		buckets = append(buckets, b)
	}
	return buckets, false, nil
}

// StatBucket describes a bucket, or returns ErrNoBucket.
func (s *Store) StatBucket(name string) (Bucket, error) {
	if !ValidBucket(name) {
		return Bucket{}, fmt.Errorf("%q: %w", name, ErrNoBucket)
	}
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, s.bucketDir(name), 0, unix.STATX_BTIME|unix.STATX_MTIME, &st)
	if errors.Is(err, unix.ENOENT) {
		return Bucket{}, fmt.Errorf("%s: %w", name, ErrNoBucket)
	}
	if err != nil {
		return Bucket{}, fmt.Errorf("bucket %s: %w", name, err)
	}
	born := st.Btime
	if st.Mask&unix.STATX_BTIME == 0 { // not every file system knows it
		born = st.Mtime
	}
	return Bucket{Name: name, Created: time.Unix(born.Sec, int64(born.Nsec))}, nil
}

// CreateBucket makes a bucket, or returns ErrBucketExists. The name must be
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
	if err := s.names.Sync(); err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	return nil
}

// DeleteBucket removes a bucket without objects, its settings and the uploads to
// it. It returns ErrBucketNotEmpty or ErrNoBucket.
func (s *Store) DeleteBucket(name string) error {
	lock := s.bucketLock(name)
	lock.Lock()
	defer lock.Unlock()
	if _, err := s.StatBucket(name); err != nil {
		return err
	}
	full, err := holdsObject(s.bucketDir(name))
	if err != nil {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	if full {
		return fmt.Errorf("%s: %w", name, ErrBucketNotEmpty)
	}
	// The bucket goes last: after a crash in between, nothing of it is left to
	// the next bucket of its name.
	err = s.discard(filepath.Join(s.uploadsDir(), name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	if err := s.removeSettings(name); err != nil {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	if err := s.discard(s.bucketDir(name)); err != nil {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	s.index.dropTree(s.bucketDir(name))
	return nil
}

// Ping returns nil when the directory is there.
func (s *Store) Ping() error {
	if _, err := os.Lstat(s.bucketsDir()); err != nil {
		return fmt.Errorf("storage directory: %w", err)
	}
	return nil
}
