// Package storagetest holds what every storage.Store must do. An implementation
// runs it against a real server:
//
//	storagetest.Run(t, func(t *testing.T) storagetest.Harness { … })
//
// The suite looks at what is stored beside the Store, with a plain S3 client or, for
// a Store that is no server's, with a Client of its own, so that it checks what a
// job's clients see.
package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// Harness is a running server and how to make a Store for it, or a Store without a
// server.
type Harness struct {
	URL, AccessKey, SecretKey string
	// Bucket holds all jobs, each below ID/; empty means a bucket per job.
	Bucket string
	// ShortNames says that the server's own disk bounds the elements of names, to
	// 200 bytes or so.
	ShortNames bool
	// HidesUnknownKeys says that the server tells a HEAD with an unknown access key
	// that there is no such thing.
	HidesUnknownKeys bool
	// KeepsParts says that the server refuses a part of an upload that it has with
	// other content.
	KeepsParts bool
	// ChangesControls says that the server may list a name with control characters as
	// another one.
	ChangesControls bool
	// Alone says that the Store is of one machine alone: it is no storage.Fencer.
	Alone bool
	// Signer makes addresses for the server; nil where there is none.
	Signer storage.Signer
	// Open makes a Store for a server at url; it is called with other URLs and
	// keys too.
	Open func(t testing.TB, url, accessKey, secretKey string) storage.Store

	// Store, without a server, and what reaches its files: the fields above are
	// empty then, and what only a server can do is not asked for.
	Store  storage.Store
	Client Client
}

// Client reaches what is stored as a job's clients do, under whatever name.
type Client interface {
	// MakePlace makes the job's empty place.
	MakePlace(ctx context.Context, id job.ID) error
	// Put writes one file of a place that is there.
	Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error
	// Files is all that the job's place holds, by name; empty where it has none.
	Files(ctx context.Context, id job.ID) (map[string]string, error)
}

// Run runs the suite; start is called once.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	h := start(t)
	s := &suite{Harness: h, store: h.Store, client: h.Client}
	if s.served() {
		s.store, s.client = h.Open(t, h.URL, h.AccessKey, h.SecretKey), newS3Client(t, h)
	}
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Place", s.testPlaces}, {"Jobs", s.testJobs}, {"File", s.testFiles}, {"Stage", s.testStage},
		{"Collect", s.testCollect}, {"Upload", s.testUpload}, {"Fence", s.testFence}, {"Hostile", s.testHostile}, {"Error", s.testErrors},
	} {
		t.Run(group.name, group.run)
	}
}

type suite struct {
	Harness
	client Client
	store  storage.Store
	last   atomic.Int64
}

// served says that the Store is a server's client.
func (s *suite) served() bool { return s.URL != "" }

// id is one that no other test uses.
func (s *suite) id() job.ID { return job.ID(fmt.Sprintf("conformance-%d", s.last.Add(1))) }

// fresh is the id of a job whose place holds the files.
func (s *suite) fresh(t *testing.T, files map[string]string) job.ID {
	t.Helper()
	id := s.id()
	s.place(t, id)
	var group errgroup.Group
	group.SetLimit(16)
	for name, content := range files {
		group.Go(func() error { return s.upload(t, id, name, content) })
	}
	noError(t, group.Wait())
	return id
}

// place makes a job's place as a client does.
func (s *suite) place(t *testing.T, id job.ID) {
	t.Helper()
	noError(t, s.client.MakePlace(t.Context(), id))
}

func (s *suite) put(t *testing.T, id job.ID, name, content string) {
	t.Helper()
	noError(t, s.upload(t, id, name, content))
}

func (s *suite) upload(t *testing.T, id job.ID, name, content string) error {
	return s.client.Put(t.Context(), id, name, strings.NewReader(content), int64(len(content)))
}

// stored is everything in the job's place, by name.
func (s *suite) stored(t *testing.T, id job.ID) map[string]string {
	t.Helper()
	files, err := s.client.Files(t.Context(), id)
	noError(t, err)
	return files
}

// onDisk is every regular file below dir, by its slashed relative path.
func onDisk(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	noError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[filepath.ToSlash(name)] = string(data)
		return err
	}))
	return files
}

// write makes the files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		noError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		noError(t, os.WriteFile(path, []byte(content), 0o644))
	}
}

// openRoot opens a working directory as the daemon hands it to a Store.
func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// class fails the test unless err is of the class.
func class(t *testing.T, what string, err error, is func(error) bool) {
	t.Helper()
	if err == nil || !is(err) {
		t.Fatalf("%s: error %v is of another class", what, err)
	}
}

func sameFiles(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if have, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing", what, name)
		} else if have != content {
			t.Errorf("%s: %q holds %d bytes (%.40q), want %d (%.40q)", what, name, len(have), have, len(content), content)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: unexpected %q", what, name)
		}
	}
}

// read opens a file through the Store and reads it.
func (s *suite) read(t *testing.T, id job.ID, name string, part *job.Range) (*job.File, string) {
	t.Helper()
	file, err := s.store.Open(t.Context(), id, name, part)
	noError(t, err)
	var content bytes.Buffer
	_, err = io.Copy(&content, file.Body)
	noError(t, err)
	noError(t, file.Body.Close())
	return file, content.String()
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
