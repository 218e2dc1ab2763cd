package s3

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// staging begins the names of files in the working directory that are not whole
// yet. They lie beside inputs/, not in a folder of their own: making and removing
// one would cost a small job more than its file does.
const staging = ".staging-"

// bootFile changes with every start of the machine. Staged files are not
// synced to disk, so after a crash of the machine none of them is trusted.
const bootFile = "/proc/sys/kernel/random/boot_id"

// Stage copies inputs/ to dir/inputs/. A file becomes visible there when it is
// whole; one that is left from a Stage that was cut short is kept, and one that
// was under way is continued. Whatever else lies in dir/inputs is removed.
// dir is made where it is missing.
func (s *Store) Stage(ctx context.Context, id job.ID, dir string, limit int64) (storage.Staged, error) {
	if err := s.CheckID(id); err != nil {
		return storage.Staged{}, err
	}
	staged, err := s.stage(ctx, id, dir, limit)
	if err != nil {
		return storage.Staged{}, fmt.Errorf("stage inputs of job %s: %w", id, err)
	}
	return staged, nil
}

func (s *Store) stage(ctx context.Context, id job.ID, dir string, limit int64) (storage.Staged, error) {
	files, staged, err := s.inputs(ctx, id)
	if err != nil {
		return storage.Staged{}, err
	}
	if limit > 0 && staged.Bytes > limit {
		return storage.Staged{}, fmt.Errorf("the inputs take %d bytes, %d are allowed: %w", staged.Bytes, limit, errdefs.ErrResourceExhausted)
	}
	err = os.Mkdir(dir, dirMode)
	if err == nil {
		err = os.Chmod(dir, dirMode) // whatever the umask
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return storage.Staged{}, localError(err)
	}
	tree, err := openTree(dir)
	if err != nil {
		return storage.Staged{}, err
	}
	defer tree.Close()
	if err := tree.canHold(staged.Bytes); err != nil {
		return storage.Staged{}, err
	}
	boot, err := s.boot()
	if err != nil {
		return storage.Staged{}, err
	}
	for _, folder := range []string{job.InputDir, job.OutputDir} {
		if err := tree.mkdir(folder); err != nil {
			return storage.Staged{}, err
		}
	}
	if err := prune(tree, files); err != nil {
		return storage.Staged{}, err
	}
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for name, info := range files {
		if within.Err() != nil {
			break
		}
		group.Go(func() error {
			if strings.HasSuffix(name, "/") {
				return tree.mkdir(strings.TrimSuffix(name, "/"))
			}
			if err := s.fetch(within, id, tree, info, boot); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return storage.Staged{}, err
	}
	if ctx.Err() != nil {
		return storage.Staged{}, ctx.Err()
	}
	return staged, tree.sweep(staging)
}

// inputs lists the job's place, checks its inputs, and notes whether an earlier
// run left outputs. A name that ends in a slash and has nothing in it is a
// folder, as S3 consoles make them.
func (s *Store) inputs(ctx context.Context, id job.ID) (map[string]storage.Info, storage.Staged, error) {
	files := make(map[string]storage.Info)
	var staged storage.Staged
	empty := true
	for info, err := range s.list(ctx, id, "", 0) {
		if err != nil {
			return nil, storage.Staged{}, err
		}
		empty = false
		if strings.HasPrefix(info.Name, job.OutputDir+"/") {
			staged.Outputs = true
		}
		if !strings.HasPrefix(info.Name, job.InputDir+"/") {
			continue
		}
		name, folder := strings.CutSuffix(info.Name, "/")
		if folder && info.Size > 0 {
			name = info.Name
		}
		if err := checkName(name); err != nil {
			return nil, storage.Staged{}, err
		}
		files[info.Name] = info
		if !folder {
			staged.Files++
		}
		staged.Bytes += info.Size
	}
	for name := range files {
		for folder := path.Dir(strings.TrimSuffix(name, "/")); folder != "."; folder = path.Dir(folder) {
			if _, both := files[folder]; both {
				return nil, storage.Staged{}, fmt.Errorf("%q cannot be a file and the folder of %q: %w", folder, name, storage.ErrBadName)
			}
		}
	}
	if empty && s.bucket != "" { // a bucket would have been missed
		return nil, storage.Staged{}, storage.ErrNotFound
	}
	return files, staged, nil
}

// prune removes from dir/inputs what is not among files, and what lies in the
// place of one without being a file. A link in the place of a folder stays: to
// go through it is refused later.
func prune(tree *tree, files map[string]storage.Info) error {
	wanted := make(map[string]bool)
	for name := range files {
		for name = strings.TrimSuffix(name, "/"); name != "."; name = path.Dir(name) {
			wanted[name] = true
		}
	}
	return tree.walk(job.InputDir, func(name string, stat *unix.Stat_t) (bool, error) {
		_, asFile := files[name]
		kind := stat.Mode & unix.S_IFMT
		switch {
		case asFile && kind == unix.S_IFREG:
			return false, nil
		case !asFile && wanted[name] && (kind == unix.S_IFDIR || kind == unix.S_IFLNK):
			return true, nil
		}
		return false, tree.removeAll(name)
	})
}

// fetch copies one file into the tree unless it is there already.
func (s *Store) fetch(ctx context.Context, id job.ID, tree *tree, info storage.Info, boot []byte) error {
	mark := fingerprint(info, boot)
	mtime := mark.mtime(info.Modified)
	if have, err := tree.stat(info.Name); err == nil {
		if have.Mode&unix.S_IFMT == unix.S_IFREG && have.Size == info.Size && have.Mtim.Nano() == mtime.UnixNano() {
			return nil
		}
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	part := staging + hex.EncodeToString(mark[:16])
	file, err := tree.create(part)
	if err != nil {
		return err
	}
	defer file.Close()
	offset, err := file.Seek(0, io.SeekEnd)
	if err == nil && offset > info.Size {
		offset, err = 0, errors.Join(file.Truncate(0), func() error { _, err := file.Seek(0, io.SeekStart); return err }())
	}
	if err != nil {
		return localError(err)
	}
	if offset < info.Size {
		bucket, key, err := s.key(id, info.Name)
		if err != nil {
			return err
		}
		err = s.fetchRest(ctx, bucket, key, info, file, offset)
		if errors.Is(err, errCondition) && s.listsOtherETag(ctx, bucket, key, info) {
			err = s.fetchRest(ctx, bucket, key, info, file, offset)
		}
		if err != nil {
			return err
		}
	}
	return tree.rename(part, info.Name, mtime)
}

// fetchRest appends what file lacks from offset on.
func (s *Store) fetchRest(ctx context.Context, bucket, key string, info storage.Info, file *os.File, offset int64) error {
	etag := info.ETag
	if s.features.otherETags.Load() {
		etag = ""
	}
	body := s.continued(ctx, bucket, key, etag, nil, offset, info.Size)
	defer body.Close()
	return copyTo(file, body)
}

// listsOtherETag reports whether a file that is as it was listed has another
// ETag than in the listing.
func (s *Store) listsOtherETag(ctx context.Context, bucket, key string, listed storage.Info) bool {
	var info minio.ObjectInfo
	err := s.try(ctx, "exists", s.stall, func(ctx context.Context, _ *watch) (err error) {
		info, err = s.client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
		return err
	})
	if err != nil || info.ETag == listed.ETag || info.Size != listed.Size || info.LastModified.Unix() != listed.Modified.Unix() {
		return false
	}
	s.lacks(&s.features.otherETags, "ETags of listings", "versions of files are told apart by time and size until they are fetched")
	return true
}

// copyTo copies body to file. Which side failed is told by the error's class.
func copyTo(file *os.File, body io.Reader) error {
	buffer := copyBuffers.Get().(*[128 << 10]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := body.Read(buffer[:])
		if _, err := file.Write(buffer[:n]); err != nil {
			return localError(err)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// mark identifies one version of a stored file, within one run of the machine.
type mark [sha256.Size]byte

func fingerprint(info storage.Info, boot []byte) mark {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %d %s", info.Name, info.ETag, info.Size, boot))
}

// mtime is the modification time a staged file gets: to the second the stored
// file's, below that part of the mark. So the file itself says which version it
// is, and whether it was changed since.
func (m mark) mtime(modified time.Time) time.Time {
	return time.Unix(modified.Unix(), int64(binary.BigEndian.Uint32(m[16:])%1e9))
}
