// Package memory keeps the files of jobs in this process's memory, for tests and
// simulations. It keeps every promise of package storage but one: it holds whole
// files. Each job's place is a bucket of its own, with S3's rules for its name.
//
// A Store has no goroutines and holds its lock for no call to anyone, so it may
// be used in a bubble of testing/synctest.
package memory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
	"github.com/iterait/shepherd/storage/internal/workdir"
)

// inputName is the one file that Init makes.
const inputName = job.InputDir + "/" + job.DefaultInput

// staging is the name, beside a working directory's inputs/, of the file that is
// not whole yet.
const staging = ".staging"

// Store is a storage.Store. The zero Store is empty and ready to use.
type Store struct {
	mu     sync.Mutex
	places map[job.ID]map[string]file
}

var _ storage.Store = (*Store)(nil)

// file is one stored file; its content never changes.
type file struct {
	data     []byte
	modified time.Time
}

func (f file) etag() string {
	sum := sha256.Sum256(f.data)
	return hex.EncodeToString(sum[:16])
}

// change calls f with the files of the job's place, nil where there is none. What
// f returns becomes the place.
func (s *Store) change(ctx context.Context, id job.ID, f func(map[string]file) (map[string]file, error)) error {
	if err := s.CheckID(id); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := f(s.places[id])
	if err != nil {
		return err
	}
	if s.places == nil {
		s.places = make(map[job.ID]map[string]file)
	}
	if files == nil {
		delete(s.places, id)
	} else {
		s.places[id] = files
	}
	return nil
}

// look is a copy of the job's place, or storage.ErrNotFound.
func (s *Store) look(ctx context.Context, id job.ID) (map[string]file, error) {
	var files map[string]file
	err := s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return nil, storage.ErrNotFound
		}
		files = maps.Clone(place)
		return place, nil
	})
	return files, err
}

// CheckID holds the id to the rules of S3 bucket names.
func (s *Store) CheckID(id job.ID) error { return places.Layout{}.CheckID(id) }

// Jobs implements storage.Store.
func (s *Store) Jobs(ctx context.Context, visit func(job.ID) error) error {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.places))
	s.mu.Unlock()
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(id); err != nil {
			return err
		}
	}
	return nil
}

// Exists implements storage.Store.
func (s *Store) Exists(ctx context.Context, id job.ID) (bool, error) {
	_, err := s.look(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Init implements storage.Store.
func (s *Store) Init(ctx context.Context, id job.ID, payload []byte) error {
	return s.make(ctx, id, inputName, bytes.Clone(payload))
}

// Reserve implements storage.Store.
func (s *Store) Reserve(ctx context.Context, id job.ID, status job.Status) error {
	text, err := job.JSON(status)
	if err != nil {
		return fmt.Errorf("write the state of job %s: %w", id, err)
	}
	return s.make(ctx, id, job.StatusFile, text)
}

// make makes the job's place with one file.
func (s *Store) make(ctx context.Context, id job.ID, name string, content []byte) error {
	return s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return map[string]file{name: {content, time.Now()}}, nil
		}
		if before, ok := place[name]; !ok || len(place) != 1 || !bytes.Equal(before.data, content) {
			return nil, storage.ErrExists
		}
		return place, nil
	})
}

// Stage implements storage.Store.
func (s *Store) Stage(ctx context.Context, id job.ID, root *os.Root, how storage.Options) (storage.Staged, error) {
	place, err := s.look(ctx, id)
	if err != nil {
		return storage.Staged{}, fmt.Errorf("stage inputs of job %s: %w", id, err)
	}
	others := map[job.ID]map[string]file{id: place}
	for _, other := range how.After {
		if others[other], err = s.look(ctx, other); err != nil {
			return storage.Staged{}, fmt.Errorf("stage outputs of job %s for job %s: %w", other, id, err)
		}
	}
	staged, err := stage(ctx, id, others, root, how)
	if err != nil {
		return storage.Staged{}, fmt.Errorf("stage inputs of job %s: %w", id, err)
	}
	return staged, nil
}

// stage stages the inputs of a job, given its place and those of the jobs that it is after.
func stage(ctx context.Context, id job.ID, from map[job.ID]map[string]file, root *os.Root, how storage.Options) (storage.Staged, error) {
	files, staged, err := places.AllInputs(id, how.After, func(other job.ID) iter.Seq2[storage.Info, error] { return listing(from[other], "") }, false)
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
	for _, folder := range []string{job.InputDir, job.OutputDir} {
		if err := dir.Mkdir(folder); err != nil {
			return storage.Staged{}, err
		}
	}
	if err := dir.Prune(job.InputDir, places.Wanted(files)); err != nil {
		return storage.Staged{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := ctx.Err(); err != nil {
			return storage.Staged{}, err
		}
		if folder, ok := strings.CutSuffix(name, "/"); ok {
			err = dir.Mkdir(folder)
		} else {
			err = write(dir, name, from[files[name].Job][files[name].Name])
		}
		if err != nil {
			return storage.Staged{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return staged, nil
}

func write(dir *workdir.Dir, name string, f file) error {
	if err := dir.RemoveAll(staging); err != nil {
		return err
	}
	part, err := dir.Create(staging)
	if err != nil {
		return err
	}
	_, err = part.Write(f.data)
	if err = errors.Join(err, part.Close()); err != nil {
		return workdir.Error(err)
	}
	return dir.Rename(staging, name, f.modified)
}

// Collect implements storage.Store. The outputs change all at once.
func (s *Store) Collect(ctx context.Context, id job.ID, root *os.Root, replace bool) (storage.Collected, error) {
	collected, err := s.collect(ctx, id, root, replace)
	if err != nil {
		return storage.Collected{}, fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	return collected, nil
}

func (s *Store) collect(ctx context.Context, id job.ID, root *os.Root, replace bool) (storage.Collected, error) {
	outputs, collected, err := s.outputs(ctx, id, root)
	if err != nil {
		return storage.Collected{}, err
	}
	return collected, s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return nil, storage.ErrNotFound
		}
		setOutputs(place, outputs, replace)
		return place, nil
	})
}

// setOutputs puts outputs into a place; with replace it removes all others.
func setOutputs(place, outputs map[string]file, replace bool) {
	if replace {
		maps.DeleteFunc(place, func(name string, _ file) bool { return strings.HasPrefix(name, job.OutputDir+"/") })
	}
	maps.Copy(place, outputs)
}

// outputs reads a working directory's outputs/.
func (s *Store) outputs(ctx context.Context, id job.ID, root *os.Root) (map[string]file, storage.Collected, error) {
	if _, err := s.look(ctx, id); err != nil {
		return nil, storage.Collected{}, err
	}
	dir, err := workdir.Open(root, storage.Options{})
	if err != nil {
		return nil, storage.Collected{}, err
	}
	defer dir.Close()
	var collected storage.Collected
	var warnings workdir.Warnings
	outputs := make(map[string]file)
	enter := func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return places.CheckName(name)
	}
	err = dir.Outputs(job.OutputDir, &warnings, enter, func(o workdir.Output) error {
		if err := enter(o.Name); err != nil {
			return err
		}
		opened, _, err := o.Open()
		if err != nil || opened == nil {
			return err
		}
		defer opened.Close()
		data, err := io.ReadAll(opened)
		if err != nil {
			return workdir.Error(err)
		}
		outputs[o.Name] = file{data, time.Now()}
		collected.Files++
		collected.Bytes += int64(len(data))
		return nil
	})
	collected.Warnings = warnings.Texts()
	return outputs, collected, err
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	if err := places.CheckName(name); err != nil {
		return nil, err
	}
	place, err := s.look(ctx, id)
	if err != nil {
		return nil, err
	}
	f, ok := place[name]
	if !ok {
		return nil, storage.ErrNotFound
	}
	size := int64(len(f.data))
	offset, length := int64(0), size
	if part != nil {
		if offset, length, ok = clip(*part, size); !ok {
			return nil, fmt.Errorf("%s has %d bytes: %w", name, size, errdefs.ErrOutOfRange)
		}
	}
	return &job.File{
		Body: &body{ctx: ctx, data: f.data[offset : offset+length]}, Size: size, Offset: offset, Length: length,
		ETag: `"` + f.etag() + `"`, Modified: f.modified,
	}, nil
}

// clip is the part of a file of the given size that the range asks for; ok is
// false where there is none.
func clip(part job.Range, size int64) (offset, length int64, ok bool) {
	offset = part.Offset
	if offset < 0 {
		offset = max(size+offset, 0)
	}
	if part.Length == 0 || offset >= size {
		return 0, 0, false
	}
	length = size - offset
	if part.Length > 0 {
		length = min(length, part.Length)
	}
	return offset, length, true
}

// body is an opened file. It is the caller's alone.
type body struct {
	ctx  context.Context
	data []byte
	shut bool
}

func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.shut:
		return 0, os.ErrClosed
	case b.ctx.Err() != nil:
		return 0, b.ctx.Err()
	case len(b.data) == 0:
		return 0, io.EOF
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

func (b *body) Close() error {
	b.shut = true
	return nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	if err := places.CheckName(name); err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("put %s: a size of %d bytes: %w", name, size, errdefs.ErrInvalidArgument)
	}
	data, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if int64(len(data)) != size {
		return fmt.Errorf("put %s: the reader does not yield %d bytes: %w", name, size, errdefs.ErrInvalidArgument)
	}
	return s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return nil, storage.ErrNotFound
		}
		place[name] = file{data, time.Now()}
		return place, nil
	})
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, id job.ID, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		place, err := s.look(ctx, id)
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		listing(place, prefix)(yield)
	}
}

// listing yields the files whose name begins with prefix, and never an error.
func listing(place map[string]file, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for _, name := range slices.Sorted(maps.Keys(place)) {
			f := place[name]
			if strings.HasPrefix(name, prefix) && !yield(storage.Info{Name: name, Size: int64(len(f.data)), ETag: f.etag(), Modified: f.modified}, nil) {
				return
			}
		}
	}
}

// Status implements storage.Store.
func (s *Store) Status(ctx context.Context, id job.ID) (job.Status, error) {
	opened, err := s.Open(ctx, id, job.StatusFile, nil)
	if err != nil {
		return job.Status{}, err
	}
	defer opened.Body.Close()
	return storage.ReadStatus(opened.Body)
}

// SetStatus implements storage.Store.
func (s *Store) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	data, err := job.JSON(status)
	if err != nil {
		return fmt.Errorf("%s of job %s: %w", job.StatusFile, id, err)
	}
	return s.Put(ctx, id, job.StatusFile, bytes.NewReader(data), int64(len(data)))
}

// Remove implements storage.Store.
func (s *Store) Remove(ctx context.Context, id job.ID) error {
	return s.change(ctx, id, func(map[string]file) (map[string]file, error) { return nil, nil })
}

// Ping implements storage.Store.
func (s *Store) Ping(ctx context.Context) error { return ctx.Err() }
