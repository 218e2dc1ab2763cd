package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// Data in several files
//
// An object's data lies in its own file, or in parts/<id>/ in the files part-N,
// each a file with a footer of its own. Such a directory belongs to exactly one
// object, whose footer names it; the file "upload" in it says which one.
//
// A completed upload's directory is moved from uploads/<bucket>/ to parts/ once
// the object's file is durable. In between, and after a crash there, the object
// finds its data where the upload was. When the object is replaced or deleted,
// the directory is removed after the object's file; one that a crash leaves
// without an object is removed by the next Open.

// dataReaders counts who reads from a directory of parts, so that it outlives
// its object as long as it is read.
type dataReaders struct {
	mu     sync.Mutex
	counts map[string]int
	unused map[string]bool // to be removed by the last reader
}

// Object is an object open for reading.
type Object struct {
	*Info
	file    *os.File // holds the data, unless Info.Data is set
	store   *Store
	current *os.File // the part that was read last
	number  int
}

// Open opens an object for reading, or returns ErrNoKey or ErrNoBucket.
func (s *Store) Open(bucket, key string) (*Object, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	o, err := s.openObject(at.path(), key)
	if errors.Is(err, ErrNoKey) {
		if _, err := s.StatBucket(bucket); err != nil {
			return nil, err
		}
	}
	return o, err
}

// openObject opens the object in a file together with its data.
func (s *Store) openObject(path, key string) (*Object, error) {
	for {
		f, info, err := openFile(path, key)
		if err != nil {
			s.logDamage(path, key, err)
			return nil, err
		}
		o := &Object{Info: info, file: f, store: s}
		if info.Data == "" {
			return o, nil
		}
		s.data.acquire(info.Data)
		_, err = s.dataDir(info)
		if err == nil {
			return o, nil
		}
		o.Close()
		again, err2 := statFile(path, key)
		if err2 == nil && again != nil && again.Data == info.Data {
			s.logDamage(filepath.Join(s.partsDir(), info.Data), key, err)
			return nil, fmt.Errorf("open object %q: %w", key, err)
		}
		// It was replaced or deleted while it was opened.
	}
}

// dataDir returns the directory that an object's parts lie in.
func (s *Store) dataDir(info *Info) (string, error) {
	var err error
	// Looked for a second time where it is moved to: it may be moved meanwhile.
	for _, dir := range []string{filepath.Join(s.partsDir(), info.Data), s.uploadDir(info.Bucket, info.Data), filepath.Join(s.partsDir(), info.Data)} {
		if _, err = os.Lstat(dir); err == nil {
			return dir, nil
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		err = lost("damaged: its data is missing")
	}
	return "", err
}

// logDamage logs which file is damaged. The error itself is also read by clients, and names
// the object only.
func (s *Store) logDamage(path, key string, err error) {
	if errdefs.IsDataLoss(err) {
		s.log.Error("an object is damaged", "key", key, "file", path, "error", err)
	}
}

// Close ends reading.
func (o *Object) Close() error {
	err := o.file.Close()
	if o.current != nil {
		err = errors.Join(err, o.current.Close())
		o.current = nil
	}
	if o.Data != "" {
		o.store.release(o.Data)
	}
	return err
}

// extent is a stretch of an object's data in one file.
type extent struct {
	number int // of the part; 0 is the object's own file
	offset int64
	size   int64
}

// extentAt returns the extent that begins at an offset of the object.
func (o *Object) extentAt(offset int64) extent {
	if o.Data == "" {
		return extent{0, offset, o.Size - offset}
	}
	if o.Whole {
		return extent{1, offset, o.Size - offset}
	}
	for _, run := range o.Parts {
		if whole := int64(run.Count) * run.Size; offset >= whole {
			offset -= whole
			continue
		}
		n := offset / run.Size
		return extent{run.First + int(n), offset - n*run.Size, run.Size - (offset - n*run.Size)}
	}
	return extent{}
}

// open returns the file of an extent. It stays open until another is asked for.
func (o *Object) open(e extent) (*os.File, error) {
	if e.number == 0 {
		return o.file, nil
	}
	if o.current != nil && o.number == e.number {
		return o.current, nil
	}
	dir, err := o.store.dataDir(o.Info)
	if err != nil {
		return nil, fmt.Errorf("read object %q: %w", o.Key, err)
	}
	path := filepath.Join(dir, partFile(e.number))
	f, info, err := openFile(path, o.Key)
	if err == nil && info.Size != e.offset+e.size {
		f.Close()
		err = errFooter
	}
	if errors.Is(err, ErrNoKey) {
		err = lost("the file is missing")
	}
	if err != nil {
		o.store.logDamage(path, o.Key, err)
		return nil, fmt.Errorf("read part %d of object %q: %w", e.number, o.Key, err)
	}
	if o.current != nil {
		o.current.Close()
	}
	o.current, o.number = f, e.number
	return f, nil
}

// ReadAt reads from an offset of the object. Calls must not overlap.
func (o *Object) ReadAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		if offset >= o.Size {
			return n, io.EOF
		}
		e := o.extentAt(offset)
		f, err := o.open(e)
		if err != nil {
			return n, err
		}
		m, err := f.ReadAt(p[n:n+int(min(int64(len(p)-n), e.size))], e.offset)
		n, offset = n+m, offset+int64(m)
		if err != nil {
			return n, unexpectedEnd(err)
		}
	}
	return n, nil
}

// unexpectedEnd is for a read within an object's size.
func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// CopyTo writes the object's bytes from offset to offset+size to w, a piece at a
// time, each from file to w directly, so that the kernel can move them. before
// is called before each piece.
func (o *Object) CopyTo(w io.Writer, offset, size, piece int64, before func()) error {
	for size > 0 {
		e := o.extentAt(offset)
		f, err := o.open(e)
		if err != nil {
			return err
		}
		if _, err := f.Seek(e.offset, io.SeekStart); err != nil {
			return fmt.Errorf("read object %q: %w", o.Key, err)
		}
		for left := min(e.size, size); left > 0; {
			before()
			n, err := io.CopyN(w, f, min(left, piece))
			left, size, offset = left-n, size-n, offset+n
			if err != nil {
				return unexpectedEnd(err)
			}
		}
	}
	return nil
}

// PartInfos describes at most limit parts with numbers over after, and says
// whether there are more. Of an object that was not uploaded in parts it returns
// none. What is not known of a part of a copied object is left empty.
func (o *Object) PartInfos(after, limit int) (parts []Part, more bool, err error) {
	for _, run := range o.Parts {
		for i := range run.Count {
			number := run.First + i
			if number <= after {
				continue
			}
			if len(parts) == limit {
				return parts, true, nil
			}
			p := Part{Number: number, Size: run.Size}
			if o.Data != "" && !o.Whole {
				f, err := o.open(extent{number, 0, run.Size})
				if err != nil {
					return nil, false, err
				}
				info, err := readInfo(f)
				if err != nil {
					return nil, false, err
				}
				p.Checksum = info.Checksum
			}
			parts = append(parts, p)
		}
	}
	return parts, false, nil
}

func (d *dataReaders) acquire(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts == nil {
		d.counts, d.unused = map[string]int{}, map[string]bool{}
	}
	d.counts[id]++
}

// release ends what acquire began.
func (s *Store) release(id string) {
	s.data.mu.Lock()
	s.data.counts[id]--
	last := s.data.counts[id] == 0
	unused := false
	if last {
		unused = s.data.unused[id]
		delete(s.data.counts, id)
		delete(s.data.unused, id)
	}
	s.data.mu.Unlock()
	if unused {
		s.dropData(id)
	}
}

// dropData removes the data of an object that is not there any more, now or
// after its last reader. id may be "".
func (s *Store) dropData(id string) {
	if id == "" {
		return
	}
	s.data.mu.Lock()
	if s.data.counts[id] > 0 {
		s.data.unused[id] = true
		s.data.mu.Unlock()
		return
	}
	trash, err := s.moveToTrash(filepath.Join(s.partsDir(), id)) // under the lock: nobody begins to read it
	s.data.mu.Unlock()
	if err == nil {
		err = os.RemoveAll(trash)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("the data of a deleted object could not be removed; the next start tries again", "dir", filepath.Join(s.partsDir(), id), "error", err)
	}
}

// linkAtLeast is the default of Store.linkAtLeast.
const linkAtLeast = 64 << 20

// errNoLinks says that data cannot be shared and has to be copied.
var errNoLinks = errors.New("no hard links")

// linkData makes a directory of parts that shares the data of src, for the
// object of a bucket and key, and returns its id and whether it is one file.
func (s *Store) linkData(ctx context.Context, src *Object, bucket, key string) (id string, whole bool, err error) {
	u := Upload{ID: newUploadID(), Bucket: bucket, Key: key, Started: now()}
	dir, err := s.newUploadDir(u)
	if err != nil {
		return "", false, err
	}
	defer os.RemoveAll(dir) // nothing is left of it when the rename worked
	link := func(from string, number int) error {
		err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, filepath.Join(dir, partFile(number)), unix.AT_SYMLINK_FOLLOW)
		if err != nil && !IsFull(err) {
			// No file system support, too many links, or the original was deleted.
			return fmt.Errorf("%w: %w", errNoLinks, err)
		}
		return err
	}
	whole = src.Data == "" || src.Whole
	switch {
	case src.Data == "":
		err = link("/proc/self/fd/"+strconv.Itoa(int(src.file.Fd())), 1)
	default:
		var from string
		if from, err = s.dataDir(src.Info); err != nil {
			return "", false, err
		}
		if src.Whole {
			err = link(filepath.Join(from, partFile(1)), 1)
			break
		}
		for _, run := range src.Parts {
			for i := 0; i < run.Count && err == nil; i++ {
				if err = ctx.Err(); err == nil {
					err = link(filepath.Join(from, partFile(run.First+i)), run.First+i)
				}
			}
		}
	}
	if err != nil {
		return "", false, err
	}
	if err := durable.SyncDirs(dir); err != nil {
		return "", false, err
	}
	if err := os.Rename(dir, filepath.Join(s.partsDir(), u.ID)); err != nil {
		return "", false, err
	}
	return u.ID, whole, durable.SyncDirs(s.partsDir())
}

// repairData finishes what a killed process began: data whose object is not
// there is removed, and that of completed uploads is moved to its place.
func (s *Store) repairData() error {
	dirs, err := os.ReadDir(s.partsDir())
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := filepath.Join(s.partsDir(), d.Name())
		u, err := readUpload(dir)
		if err != nil {
			s.log.Error("the description of an object's data is damaged; the data stays", "dir", dir, "error", err)
			continue
		}
		used, err := s.usesData(u.Bucket, u.Key, d.Name())
		if err != nil {
			s.log.Error("the object that some data belongs to cannot be read; the data stays", "dir", dir, "error", err)
			continue
		}
		if used {
			continue
		}
		if err := s.discard(dir); err != nil {
			return err
		}
	}
	buckets, err := os.ReadDir(s.uploadsDir())
	if err != nil {
		return err
	}
	for _, b := range buckets {
		uploads, err := os.ReadDir(filepath.Join(s.uploadsDir(), b.Name()))
		if err != nil {
			return err
		}
		for _, d := range uploads {
			u, err := s.upload(b.Name(), d.Name())
			if err != nil {
				continue // ReapUploads removes it in time
			}
			if used, err := s.usesData(u.Bucket, u.Key, u.ID); err != nil || !used {
				continue
			}
			if err := s.adoptUpload(u); err != nil {
				return err
			}
		}
	}
	return nil
}

// usesData reports whether the object of a bucket and key has its data in the
// directory of this id.
func (s *Store) usesData(bucket, key, id string) (bool, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return false, err
	}
	info, err := statFile(at.path(), key)
	return info != nil && info.Data == id, err
}

// adoptUpload makes the parts of a completed upload the data of its object.
func (s *Store) adoptUpload(u *Upload) error {
	from := s.uploadDir(u.Bucket, u.ID)
	if err := os.Rename(from, filepath.Join(s.partsDir(), u.ID)); err != nil {
		return err
	}
	return durable.SyncDirs(s.partsDir(), filepath.Dir(from))
}
