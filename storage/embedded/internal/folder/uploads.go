package folder

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/internal/durable"
)

// MaxParts is the highest number of a part.
const MaxParts = 10_000

// Upload is a multipart upload that is neither completed nor aborted. It lies
// in a directory of its own and survives a restart, as its parts do.
type Upload struct {
	ID      string            `json:"-"`
	Bucket  string            `json:"bucket"`
	Key     string            `json:"key"`
	Started time.Time         `json:"started"`
	Attrs   map[string]string `json:"attrs,omitempty"`

	// The checksum that the parts and the object get.
	ChecksumAlgorithm string `json:"checksum_algorithm,omitempty"`
	ChecksumComposite bool   `json:"checksum_composite,omitempty"`

	// What the object has to be when the upload is completed: the headers
	// If-Match and If-None-Match it was begun with.
	IfMatch     string `json:"if_match,omitempty"`
	IfNoneMatch string `json:"if_none_match,omitempty"`
}

// Part is a part of an upload.
type Part struct {
	Number   int
	Size     int64 // bytes
	ETag     string
	Modified time.Time
	Checksum Checksum
}

const uploadFile = "upload"

func (s *Store) uploadDir(bucket, id string) string {
	return filepath.Join(s.uploadsDir(), bucket, id)
}

func partFile(number int) string { return "part-" + strconv.Itoa(number) }

func newUploadID() string { return rand.Text() }

// validUploadID keeps ids that newUploadID does not make from becoming paths.
func validUploadID(id string) bool {
	return id != "" && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// CreateUpload begins an upload and returns it with its id. Bucket, Key and
// what the client says of the object are given.
func (s *Store) CreateUpload(u Upload) (*Upload, error) {
	if _, err := s.locate(u.Bucket, u.Key); err != nil {
		return nil, err
	}
	u.ID, u.Started = newUploadID(), now()
	lock := s.bucketLock(u.Bucket)
	lock.RLock()
	defer lock.RUnlock()
	if _, err := s.StatBucket(u.Bucket); err != nil {
		return nil, err
	}
	if err := s.createUpload(u); err != nil {
		return nil, fmt.Errorf("begin upload of %q: %w", u.Key, err)
	}
	return &u, nil
}

// createUpload makes the upload's directory with its description, at once.
func (s *Store) createUpload(u Upload) error {
	dir, err := s.newUploadDir(u)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // nothing is left of it when the rename worked
	parent := filepath.Join(s.uploadsDir(), u.Bucket)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Rename(dir, s.uploadDir(u.Bucket, u.ID)); err != nil {
		return err
	}
	return durable.SyncDirs(parent)
}

// newUploadDir makes a directory below tmp/ that describes u.
func (s *Store) newUploadDir(u Upload) (string, error) {
	text, err := json.Marshal(u)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(s.tmp, "upload-")
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(filepath.Join(dir, uploadFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Sync(), f.Close(), durable.SyncDirs(dir))
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

// readUpload reads the description in an upload's directory.
func readUpload(dir string) (*Upload, error) {
	text, err := os.ReadFile(filepath.Join(dir, uploadFile))
	if err != nil {
		return nil, err
	}
	u := &Upload{ID: filepath.Base(dir)}
	if err := json.Unmarshal(text, u); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, uploadFile), err)
	}
	return u, nil
}

// upload reads the description of an upload, or returns ErrNoUpload.
func (s *Store) upload(bucket, id string) (*Upload, error) {
	missing := fmt.Errorf("%q: %w", id, ErrNoUpload)
	if !ValidBucket(bucket) || !validUploadID(id) {
		return nil, missing
	}
	u, err := readUpload(s.uploadDir(bucket, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("read upload %s: %w", id, err)
	}
	return u, nil
}

// GetUpload describes the upload with this id to a bucket and key, or returns
// ErrNoBucket or ErrNoUpload.
func (s *Store) GetUpload(bucket, key, id string) (*Upload, error) {
	u, err := s.upload(bucket, id)
	if err == nil && u.Key != key {
		err = fmt.Errorf("%q: %w", id, ErrNoUpload)
	}
	if errors.Is(err, ErrNoUpload) {
		if _, err := s.StatBucket(bucket); err != nil {
			return nil, err
		}
	}
	return u, err
}

// Uploads returns the uploads to a bucket, by key, then by age, or ErrNoBucket.
func (s *Store) Uploads(ctx context.Context, bucket string) ([]Upload, error) {
	if _, err := s.StatBucket(bucket); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.uploadsDir(), bucket))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list uploads: %w", err)
	}
	var uploads []Upload
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		u, err := s.upload(bucket, e.Name())
		if errors.Is(err, ErrNoUpload) {
			continue
		}
		if err != nil {
			return nil, err
		}
		uploads = append(uploads, *u)
	}
	slices.SortFunc(uploads, func(a, b Upload) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if c := a.Started.Compare(b.Started); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return uploads, nil
}

// PutPart stores one part, replacing an earlier one with its number. complete
// is as for Put.
func (s *Store) PutPart(u *Upload, number int, body io.Reader, size int64, complete func(*Info) error) (*Info, error) {
	if number < 1 || number > MaxParts {
		return nil, fmt.Errorf("part %d: %w", number, ErrBadPart)
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, u.Key, err)
	}
	defer d.close()
	if err := d.fill(body, size, true); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, u.Key, err)
	}
	info := &Info{Key: u.Key, ETag: d.etag(), Modified: now()}
	if complete != nil {
		if err := complete(info); err != nil {
			return nil, err
		}
	}
	if err := d.seal(info); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, u.Key, err)
	}
	lock := s.uploadLock(u.ID)
	lock.RLock()
	defer lock.RUnlock()
	bucket := s.bucketLock(u.Bucket)
	bucket.RLock()
	defer bucket.RUnlock()
	if _, err := s.upload(u.Bucket, u.ID); err != nil { // ended meanwhile
		return nil, err
	}
	dir := s.uploadDir(u.Bucket, u.ID)
	if err := d.moveTo(filepath.Join(dir, partFile(number))); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, u.Key, err)
	}
	if err := durable.SyncDirs(dir); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, u.Key, err)
	}
	return info, nil
}

// Parts returns at most limit parts with numbers over after, and whether there
// are more.
func (s *Store) Parts(u *Upload, after, limit int) (parts []Part, more bool, err error) {
	dir := s.uploadDir(u.Bucket, u.ID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, fmt.Errorf("list parts of %q: %w", u.Key, err)
	}
	var numbers []int
	for _, e := range entries {
		if n, ok := partNumber(e.Name()); ok && n > after {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		if len(parts) == limit {
			return parts, true, nil
		}
		info, err := statFile(filepath.Join(dir, partFile(n)), u.Key)
		if err != nil {
			return nil, false, fmt.Errorf("list parts of %q: %w", u.Key, err)
		}
		if info != nil {
			parts = append(parts, Part{Number: n, Size: info.Size, ETag: info.ETag, Modified: info.Modified, Checksum: info.Checksum})
		}
	}
	return parts, false, nil
}

// partNumber reads the number from the name of a part's file.
func partNumber(name string) (int, bool) {
	text, ok := strings.CutPrefix(name, "part-")
	n, err := strconv.Atoi(text)
	return n, ok && err == nil
}

// CompleteUpload makes an object of the chosen parts, of which Number and ETag
// count, in ascending order. finish, when not nil, gets what is stored of them,
// and may refuse the object or set its checksum. Completing again what was
// completed, as a client does that missed the answer, gives the same result as
// long as the object is there.
func (s *Store) CompleteUpload(ctx context.Context, bucket, key, id string, chosen []Part, finish func(u *Upload, parts []Part, info *Info) error, check Check) (*Info, error) {
	at, err := s.locate(bucket, key)
	if err != nil {
		return nil, err
	}
	lock := s.uploadLock(id)
	lock.Lock()
	defer lock.Unlock()
	u, err := s.GetUpload(bucket, key, id)
	if errors.Is(err, ErrNoUpload) && id != "" {
		if info, err := s.Stat(bucket, key); err == nil && info.Upload == id {
			return info, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("complete %q without parts: %w", key, ErrBadPart)
	}
	info := &Info{Key: key, Bucket: bucket, Data: id, Upload: id, Attrs: u.Attrs}
	sums := md5.New()
	parts := make([]Part, len(chosen))
	for i, p := range chosen {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if i > 0 && p.Number <= chosen[i-1].Number {
			return nil, fmt.Errorf("part %d after %d: %w", p.Number, chosen[i-1].Number, ErrPartOrder)
		}
		part, err := s.chosenPart(u, p)
		if err != nil {
			return nil, fmt.Errorf("complete %q: part %d: %w", key, p.Number, err)
		}
		sum, err := hex.DecodeString(part.ETag)
		if err != nil {
			return nil, fmt.Errorf("complete %q: part %d: %w", key, p.Number, err)
		}
		sums.Write(sum)
		parts[i] = part
		info.Size += part.Size
		if n := len(info.Parts); n > 0 && info.Parts[n-1].Size == part.Size && info.Parts[n-1].First+info.Parts[n-1].Count == part.Number {
			info.Parts[n-1].Count++
		} else {
			info.Parts = append(info.Parts, Run{First: part.Number, Count: 1, Size: part.Size})
		}
	}
	if finish != nil {
		if err := finish(u, parts, info); err != nil {
			return nil, err
		}
	}
	info.ETag = hex.EncodeToString(sums.Sum(nil)) + "-" + strconv.Itoa(len(parts))
	info.Modified = now()
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("complete %q: %w", key, err)
	}
	defer d.close()
	if info, err = s.store(d, info, at, check); err != nil {
		return nil, err
	}
	if err := s.adoptUpload(u); err != nil {
		// The object is whole with its data where it is; the next start moves it.
		s.log.Warn("the parts of a completed upload could not be moved to their place", "upload", id, "error", err)
		return info, nil
	}
	s.removeOtherParts(filepath.Join(s.partsDir(), id), info)
	return info, nil
}

// chosenPart describes a stored part that is to become a piece of an object.
func (s *Store) chosenPart(u *Upload, p Part) (Part, error) {
	stored, err := statFile(filepath.Join(s.uploadDir(u.Bucket, u.ID), partFile(p.Number)), u.Key)
	if err != nil {
		return p, err
	}
	if stored == nil {
		return p, ErrBadPart
	}
	if stored.ETag != p.ETag {
		return p, fmt.Errorf("its ETag is %s, not %s: %w", stored.ETag, p.ETag, ErrBadPart)
	}
	return Part{Number: p.Number, Size: stored.Size, ETag: stored.ETag, Modified: stored.Modified, Checksum: stored.Checksum}, nil
}

// removeOtherParts removes the parts that were uploaded and not chosen.
func (s *Store) removeOtherParts(dir string, info *Info) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		n, ok := partNumber(e.Name())
		if !ok || slices.ContainsFunc(info.Parts, func(r Run) bool { return n >= r.First && n < r.First+r.Count }) {
			continue
		}
		err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		s.log.Warn("parts that no object needs could not be removed", "dir", dir, "error", err)
	}
}

// AbortUpload removes an upload and its parts.
func (s *Store) AbortUpload(bucket, key, id string) error {
	lock := s.uploadLock(id)
	lock.Lock()
	defer lock.Unlock()
	within := s.bucketLock(bucket)
	within.RLock()
	defer within.RUnlock()
	u, err := s.GetUpload(bucket, key, id)
	if err != nil {
		return err
	}
	if err := s.removeUpload(u); err != nil {
		return fmt.Errorf("abort upload %s: %w", id, err)
	}
	return nil
}

// removeUpload removes an upload, unless its parts are the data of an object
// already. Its lock and its bucket's are held.
func (s *Store) removeUpload(u *Upload) error {
	used, err := s.usesData(u.Bucket, u.Key, u.ID)
	if err != nil {
		return err
	}
	if used {
		return s.adoptUpload(u)
	}
	return s.discard(s.uploadDir(u.Bucket, u.ID))
}

// ReapUploads aborts the uploads that got no part since before, and returns
// how many.
func (s *Store) ReapUploads(before time.Time) (int, error) {
	buckets, err := os.ReadDir(s.uploadsDir())
	if err != nil {
		return 0, fmt.Errorf("reap uploads: %w", err)
	}
	var reaped int
	var failed []error
	for _, b := range buckets {
		uploads, err := os.ReadDir(filepath.Join(s.uploadsDir(), b.Name()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, fmt.Errorf("reap uploads to bucket %s: %w", b.Name(), err))
		}
		for _, e := range uploads {
			ok, err := s.reap(b.Name(), e.Name(), before)
			if err != nil {
				failed = append(failed, fmt.Errorf("reap upload %s: %w", e.Name(), err))
			}
			if ok {
				reaped++
			}
		}
	}
	return reaped, errors.Join(failed...)
}

func (s *Store) reap(bucket, id string, before time.Time) (bool, error) {
	lock := s.uploadLock(id)
	lock.Lock()
	defer lock.Unlock()
	within := s.bucketLock(bucket)
	within.RLock()
	defer within.RUnlock()
	st, err := os.Stat(s.uploadDir(bucket, id)) // each part changes the directory
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.ModTime().Before(before) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	u, err := s.upload(bucket, id)
	if errors.Is(err, ErrNoUpload) {
		return true, s.discard(s.uploadDir(bucket, id))
	}
	if err != nil {
		return false, err
	}
	return true, s.removeUpload(u)
}
