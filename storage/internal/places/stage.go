package places

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// staging begins the names of files in the working directory that are not whole
// yet. They lie beside inputs/, not in a folder of their own: making and removing
// one would cost a small job more than its file does.
const staging = ".staging-"

// bootFile changes with every start of the machine. Staged files are not
// synced to disk, so after a crash of the machine none of them is trusted.
const bootFile = "/proc/sys/kernel/random/boot_id"

// bootID is the content of bootFile, read once. A read that failed, for want of a
// file descriptor, is tried again.
type bootID struct {
	mu   sync.Mutex
	text []byte
}

func (b *bootID) read() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	if b.text == nil {
		b.text, err = os.ReadFile(bootFile)
	}
	return b.text, err
}

// Stager is how files come from storage into a working directory.
type Stager struct {
	Layout
	Parallel int // files at a time

	// List yields all files of a job's place, and one error at most, as the last
	// thing.
	List func(ctx context.Context, id job.ID) iter.Seq2[storage.Info, error]
	// Fetch appends to file what it lacks, from the byte at offset on.
	Fetch func(ctx context.Context, id job.ID, info storage.Info, file *os.File, offset int64) error

	boot bootID
}

// Stage copies inputs/ to dir's inputs/. A file becomes visible there when it is
// whole; one that is left from a Stage that was cut short is kept, and one that
// was under way is continued. Whatever else lies in dir's inputs/ is removed.
func (s *Stager) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (storage.Staged, error) {
	if err := s.CheckID(id); err != nil {
		return storage.Staged{}, err
	}
	staged, err := s.stage(ctx, id, dir, how)
	if err != nil {
		return storage.Staged{}, fmt.Errorf("stage inputs of job %s: %w", id, err)
	}
	return staged, nil
}

func (s *Stager) stage(ctx context.Context, id job.ID, root *os.Root, how storage.Options) (storage.Staged, error) {
	files, staged, err := s.inputs(ctx, id)
	if err != nil {
		return storage.Staged{}, err
	}
	dir, err := workdir.Open(root, how)
	if err != nil {
		return storage.Staged{}, err
	}
	defer dir.Close()
	if err := dir.CanHold(staged.Bytes); err != nil {
		return storage.Staged{}, err
	}
	if how.Admit != nil {
		if err := how.Admit(staged.Bytes); err != nil {
			return storage.Staged{}, err
		}
	}
	boot, err := s.boot.read()
	if err != nil {
		return storage.Staged{}, workdir.Error(err)
	}
	for _, folder := range []string{job.InputDir, job.OutputDir} {
		if err := dir.Mkdir(folder); err != nil {
			return storage.Staged{}, err
		}
	}
	if err := dir.Prune(job.InputDir, Wanted(files)); err != nil {
		return storage.Staged{}, err
	}
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(s.Parallel)
	for name, info := range files {
		if within.Err() != nil {
			break
		}
		group.Go(func() error {
			if strings.HasSuffix(name, "/") {
				return dir.Mkdir(strings.TrimSuffix(name, "/"))
			}
			if err := s.fetch(within, id, dir, info, boot); err != nil {
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
	return staged, dir.Sweep(staging)
}

// inputs lists the job's place and checks its inputs; see Inputs.
func (s *Stager) inputs(ctx context.Context, id job.ID) (map[string]storage.Info, storage.Staged, error) {
	files, staged, empty, err := Inputs(s.List(ctx, id))
	if err == nil && empty && s.Bucket != "" { // a bucket would have been missed
		err = storage.ErrNotFound
	}
	return files, staged, err
}

// Inputs picks a job's inputs from the listing of its place, checks their names and
// notes whether an earlier run left outputs; empty says that nothing is listed. A
// name that ends in a slash and has nothing in it is a folder, as S3 consoles make
// them.
func Inputs(listing iter.Seq2[storage.Info, error]) (files map[string]storage.Info, staged storage.Staged, empty bool, err error) {
	files, empty = make(map[string]storage.Info), true
	for info, err := range listing {
		if err != nil {
			return nil, storage.Staged{}, false, err
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
		if err := CheckName(name); err != nil {
			return nil, storage.Staged{}, false, err
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
				return nil, storage.Staged{}, false, fmt.Errorf("%q cannot be a file and the folder of %q: %w", folder, name, storage.ErrBadName)
			}
		}
	}
	return files, staged, empty, nil
}

// Wanted reports which names below a working directory's inputs/ stay there when
// the files are staged: their own and their folders'.
func Wanted(files map[string]storage.Info) func(name string, dir bool) bool {
	folders := make(map[string]bool)
	for name := range files {
		folder, marker := strings.CutSuffix(name, "/")
		if !marker {
			folder = path.Dir(name)
		}
		for ; folder != "." && !folders[folder]; folder = path.Dir(folder) {
			folders[folder] = true
		}
	}
	return func(name string, dir bool) bool {
		if dir {
			return folders[name]
		}
		_, wanted := files[name]
		return wanted
	}
}

// fetch copies one file into dir unless it is there already.
func (s *Stager) fetch(ctx context.Context, id job.ID, dir *workdir.Dir, info storage.Info, boot []byte) error {
	mark := fingerprint(info, boot)
	mtime := mark.mtime(info.Modified)
	if held, err := dir.Holds(info.Name, info.Size, mtime); held || err != nil {
		return err
	}
	part := staging + hex.EncodeToString(mark[:16])
	file, err := dir.Create(part)
	if err != nil {
		return err
	}
	defer file.Close()
	offset, err := file.Seek(0, io.SeekEnd)
	if err == nil && offset > info.Size {
		offset, err = 0, errors.Join(file.Truncate(0), func() error { _, err := file.Seek(0, io.SeekStart); return err }())
	}
	if err != nil {
		return workdir.Error(err)
	}
	if offset < info.Size {
		if err := s.Fetch(ctx, id, info, file, offset); err != nil {
			return err
		}
	}
	return dir.Rename(part, info.Name, mtime)
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
