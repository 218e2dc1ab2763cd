package places

import (
	"context"
	"crypto/rand"
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

// bootID is the content of bootFile, read once. A read that failed, for lack of a
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

// processID tells the files that this Stager has begun from those that an earlier process has
// left: of these, any bytes may be missing.
type processID struct {
	once sync.Once
	text string
}

func (p *processID) String() string {
	p.once.Do(func() { p.text = rand.Text() })
	return p.text
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

	boot    bootID
	process processID
}

// Stage copies inputs/ to dir's inputs/. A file becomes visible there when it is
// whole; one that is left from a Stage that was cut short is kept, and one that
// was under way in the same process is continued. Whatever else lies in dir's inputs/ is
// removed.
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
	list := func(id job.ID) iter.Seq2[storage.Info, error] { return s.List(ctx, id) }
	files, staged, err := AllInputs(id, how.After, list, s.Bucket != "") // a bucket would have been missed
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
	for name, source := range files {
		if within.Err() != nil {
			break
		}
		group.Go(func() error {
			if strings.HasSuffix(name, "/") {
				return dir.Mkdir(strings.TrimSuffix(name, "/"))
			}
			if err := s.fetch(within, source, dir, name, boot); err != nil {
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

// Source is a file that is staged, as it is in the place of a job.
type Source struct {
	Job job.ID
	storage.Info
}

// AllInputs are the files that are staged for a job, by their names in the working
// directory: its inputs and the outputs of those that it is after, from the listings of
// their places. With required the job's has something, or there is no such place.
func AllInputs(id job.ID, after []job.ID, list func(job.ID) iter.Seq2[storage.Info, error], required bool) (map[string]Source, storage.Staged, error) {
	files, staged, empty, err := inputs(id, list(id))
	if err == nil && empty && required {
		err = storage.ErrNotFound
	}
	if err != nil {
		return nil, storage.Staged{}, err
	}
	for _, other := range after {
		if err := addOutputs(files, &staged, other, list(other)); err != nil {
			return nil, storage.Staged{}, fmt.Errorf("outputs of job %s: %w", other, err)
		}
	}
	return files, staged, checkFolders(files)
}

// addOutputs adds the outputs of another job from the listing of its place.
func addOutputs(files map[string]Source, staged *storage.Staged, other job.ID, listing iter.Seq2[storage.Info, error]) error {
	below := job.InputDir + "/" + string(other) + "/"
	files[below] = Source{Job: other}
	for info, err := range listing {
		if err != nil {
			return err
		}
		name, output := strings.CutPrefix(info.Name, job.OutputDir+"/")
		if !output || name == "" {
			continue
		}
		if err := CheckName(strings.TrimSuffix(name, "/")); err != nil {
			return err
		}
		if _, taken := files[below+name]; taken {
			return fmt.Errorf("%q is an input of the job: %w", below+name, storage.ErrBadName)
		}
		files[below+name] = Source{other, info}
		if !strings.HasSuffix(name, "/") {
			staged.Files++
		}
		staged.Bytes += info.Size
	}
	return nil
}

// inputs picks a job's inputs from the listing of its place, checks their names and
// notes whether an earlier run left outputs; empty says that nothing is listed. A
// name that ends in a slash and has nothing in it is a folder, as S3 consoles make
// them. The files are by their names in the working directory.
func inputs(id job.ID, listing iter.Seq2[storage.Info, error]) (files map[string]Source, staged storage.Staged, empty bool, err error) {
	files, empty = make(map[string]Source), true
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
		files[info.Name] = Source{id, info}
		if !folder {
			staged.Files++
		}
		staged.Bytes += info.Size
	}
	return files, staged, empty, nil
}

// checkFolders returns an error where a name is that of a file and of another one's
// folder.
func checkFolders(files map[string]Source) error {
	for name := range files {
		for folder := path.Dir(strings.TrimSuffix(name, "/")); folder != "."; folder = path.Dir(folder) {
			if _, both := files[folder]; both {
				return fmt.Errorf("%q cannot be a file and the folder of %q: %w", folder, name, storage.ErrBadName)
			}
		}
		if folder, marker := strings.CutSuffix(name, "/"); marker {
			if _, both := files[folder]; both {
				return fmt.Errorf("%q cannot be a file and a folder: %w", folder, storage.ErrBadName)
			}
		}
	}
	return nil
}

// Wanted reports which names below a working directory's inputs/ stay there when
// the files are staged: their own and their folders'.
func Wanted(files map[string]Source) func(name string, dir bool) bool {
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

// fetch copies one file into dir under a name, unless it is there already.
func (s *Stager) fetch(ctx context.Context, from Source, dir *workdir.Dir, name string, boot []byte) error {
	info := from.Info
	info.Name = name
	mark := fingerprint(info, boot)
	mtime := mark.mtime(info.Modified)
	if held, err := dir.Holds(name, info.Size, mtime); held || err != nil {
		return err
	}
	part := staging + hex.EncodeToString(mark[:16]) + "-" + s.process.String()
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
		if err := s.Fetch(ctx, from.Job, from.Info, file, offset); err != nil {
			return err
		}
	}
	return dir.Rename(part, name, mtime)
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
