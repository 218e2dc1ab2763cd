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
}

// Part is a part of an upload.
type Part struct {
	Number   int
	Size     int64 // bytes
	ETag     string
	Modified time.Time
}

const uploadFile = "upload"

func (s *Store) uploadDir(id string) string { return filepath.Join(s.uploadsDir(), id) }

func partFile(number int) string { return fmt.Sprintf("part-%d", number) }

// CreateUpload begins an upload and returns its id.
func (s *Store) CreateUpload(bucket, key string, attrs map[string]string) (string, error) {
	if _, err := s.placeOf(bucket, key); err != nil {
		return "", err
	}
	if there, err := s.BucketExists(bucket); err != nil || !there {
		return "", errors.Join(fmt.Errorf("%s: %w", bucket, ErrNoBucket), err)
	}
	u := Upload{ID: rand.Text(), Bucket: bucket, Key: key, Started: now(), Attrs: attrs}
	if err := s.writeUpload(u); err != nil {
		return "", fmt.Errorf("begin upload of %q: %w", key, err)
	}
	return u.ID, nil
}

// writeUpload makes the upload's directory with its description, at once.
func (s *Store) writeUpload(u Upload) error {
	text, err := json.Marshal(u)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.tmpDir(), "upload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // nothing is left of it when the rename worked
	f, err := os.OpenFile(filepath.Join(dir, uploadFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(dir, s.uploadDir(u.ID)); err != nil {
		return err
	}
	return syncDirs(s.uploadDir(u.ID), s.uploadsDir())
}

// upload reads the description of an upload, or answers ErrNoUpload.
func (s *Store) upload(id string) (*Upload, error) {
	missing := fmt.Errorf("%q: %w", id, ErrNoUpload)
	if id == "" || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		return nil, missing
	}
	text, err := os.ReadFile(filepath.Join(s.uploadDir(id), uploadFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("read upload %s: %w", id, err)
	}
	u := &Upload{ID: id}
	if err := json.Unmarshal(text, u); err != nil {
		return nil, fmt.Errorf("read upload %s: %w", id, err)
	}
	return u, nil
}

// GetUpload describes the upload with this id to a bucket and key, or answers
// ErrNoUpload.
func (s *Store) GetUpload(bucket, key, id string) (*Upload, error) {
	u, err := s.upload(id)
	if err != nil {
		return nil, err
	}
	if u.Bucket != bucket || u.Key != key {
		return nil, fmt.Errorf("%q: %w", id, ErrNoUpload)
	}
	return u, nil
}

// Uploads returns the uploads to a bucket, by key, then by age.
func (s *Store) Uploads(bucket string) ([]Upload, error) {
	entries, err := os.ReadDir(s.uploadsDir())
	if err != nil {
		return nil, fmt.Errorf("list uploads: %w", err)
	}
	var uploads []Upload
	for _, e := range entries {
		u, err := s.upload(e.Name())
		if errors.Is(err, ErrNoUpload) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if u.Bucket == bucket {
			uploads = append(uploads, *u)
		}
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
func (s *Store) PutPart(bucket, key, id string, number int, body io.Reader, size int64, complete func(*Info) error) (*Info, error) {
	if number < 1 || number > MaxParts {
		return nil, fmt.Errorf("part %d: %w", number, ErrBadPart)
	}
	if _, err := s.GetUpload(bucket, key, id); err != nil {
		return nil, err
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, key, err)
	}
	defer d.close()
	if err := d.fill(body, size); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, key, err)
	}
	info := &Info{Key: key, ETag: d.etag(), Modified: now()}
	if complete != nil {
		if err := complete(info); err != nil {
			return nil, err
		}
	}
	if err := d.seal(info); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, key, err)
	}
	lock := s.uploadLock(id)
	lock.RLock()
	defer lock.RUnlock()
	if _, err := s.upload(id); err != nil { // ended meanwhile
		return nil, err
	}
	if err := d.moveTo(filepath.Join(s.uploadDir(id), partFile(number))); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, key, err)
	}
	if err := syncDirs(s.uploadDir(id)); err != nil {
		return nil, fmt.Errorf("store part %d of %q: %w", number, key, err)
	}
	return info, nil
}

// Parts returns at most limit parts with numbers over after, and whether there
// are more.
func (s *Store) Parts(bucket, key, id string, after, limit int) (parts []Part, more bool, err error) {
	if _, err := s.GetUpload(bucket, key, id); err != nil {
		return nil, false, err
	}
	entries, err := os.ReadDir(s.uploadDir(id))
	if err != nil {
		return nil, false, fmt.Errorf("list parts of %q: %w", key, err)
	}
	var numbers []int
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), "part-")
		if n, err := strconv.Atoi(text); ok && err == nil && n > after {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		if len(parts) == limit {
			return parts, true, nil
		}
		info, err := statObject(filepath.Join(s.uploadDir(id), partFile(n)), key)
		if err != nil {
			return nil, false, fmt.Errorf("list parts of %q: %w", key, err)
		}
		if info != nil {
			parts = append(parts, Part{Number: n, Size: info.Size, ETag: info.ETag, Modified: info.Modified})
		}
	}
	return parts, false, nil
}

// CompleteUpload makes an object of the chosen parts, of which Number and ETag
// count, in ascending order. Completing again what was completed, as a client
// does that missed the answer, gives the same result as long as the object is
// there.
func (s *Store) CompleteUpload(ctx context.Context, bucket, key, id string, parts []Part, check Check) (*Info, error) {
	at, err := s.placeOf(bucket, key)
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
	if len(parts) == 0 {
		return nil, fmt.Errorf("complete %q without parts: %w", key, ErrBadPart)
	}
	d, err := s.newDraft()
	if err != nil {
		return nil, fmt.Errorf("complete %q: %w", key, err)
	}
	defer d.close()
	info := &Info{Key: key, Attrs: u.Attrs, Upload: id}
	sums := md5.New()
	for i, p := range parts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if i > 0 && p.Number <= parts[i-1].Number {
			return nil, fmt.Errorf("part %d after %d: %w", p.Number, parts[i-1].Number, ErrPartOrder)
		}
		size, err := s.appendPart(d, u, p, sums)
		if err != nil {
			return nil, fmt.Errorf("complete %q: part %d: %w", key, p.Number, err)
		}
		if n := len(info.Parts); n > 0 && info.Parts[n-1].Size == size {
			info.Parts[n-1].Count++
		} else {
			info.Parts = append(info.Parts, Run{Count: 1, Size: size})
		}
	}
	info.ETag = hex.EncodeToString(sums.Sum(nil)) + "-" + strconv.Itoa(len(parts))
	info.Modified = now()
	if info, err = s.place(d, info, at, check); err != nil {
		return nil, err
	}
	if err := s.discard(s.uploadDir(id)); err != nil {
		// The object is there; what is left of the upload will be reaped.
		s.log.Warn("the parts of a completed upload could not be removed", "upload", id, "error", err)
	}
	return info, nil
}

// appendPart adds one part to the object, and its MD5 to sums.
func (s *Store) appendPart(d *draft, u *Upload, p Part, sums io.Writer) (int64, error) {
	o, err := openObject(filepath.Join(s.uploadDir(u.ID), partFile(p.Number)), u.Key)
	if errors.Is(err, ErrNoKey) {
		return 0, ErrBadPart
	}
	if err != nil {
		return 0, err
	}
	defer o.Close()
	if o.ETag != p.ETag {
		return 0, fmt.Errorf("its ETag is %s, not %s: %w", o.ETag, p.ETag, ErrBadPart)
	}
	sum, err := hex.DecodeString(o.ETag)
	if err != nil {
		return 0, err
	}
	sums.Write(sum)
	return o.Size, d.append(o.File, 0, o.Size)
}

// AbortUpload forgets an upload and its parts.
func (s *Store) AbortUpload(bucket, key, id string) error {
	lock := s.uploadLock(id)
	lock.Lock()
	defer lock.Unlock()
	if _, err := s.GetUpload(bucket, key, id); err != nil {
		return err
	}
	if err := s.discard(s.uploadDir(id)); err != nil {
		return fmt.Errorf("abort upload %s: %w", id, err)
	}
	return nil
}

// ReapUploads aborts the uploads that got no part since before, and returns
// how many.
func (s *Store) ReapUploads(before time.Time) (int, error) {
	entries, err := os.ReadDir(s.uploadsDir())
	if err != nil {
		return 0, fmt.Errorf("reap uploads: %w", err)
	}
	var reaped int
	var failed []error
	for _, e := range entries {
		ok, err := s.reap(e.Name(), before)
		if err != nil {
			failed = append(failed, fmt.Errorf("reap upload %s: %w", e.Name(), err))
		}
		if ok {
			reaped++
		}
	}
	return reaped, errors.Join(failed...)
}

func (s *Store) reap(id string, before time.Time) (bool, error) {
	lock := s.uploadLock(id)
	lock.Lock()
	defer lock.Unlock()
	st, err := os.Stat(s.uploadDir(id)) // each part changes the directory
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.ModTime().Before(before) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.discard(s.uploadDir(id))
}
