package api

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

// TestZip compares a zip file, of any number of sections, with what a single zip.Writer
// makes of the same files.
func TestZip(t *testing.T) {
	for _, c := range []struct {
		files  int
		offset int64
	}{
		{0, 0}, {1, 0}, {zipSection - 1, 0}, {zipSection, 0}, {zipSection + 1, 0}, {3 * zipSection, 0},
		{1<<16 - 2, 0}, {1<<16 - 1, 0}, // the second needs zip64
		{1, 1<<32 - 200}, {1, 1<<32 - 50}, {1, 1 << 32}, {0, 1 << 32}, {zipSection + 1, 5 << 30},
		{zipSection + 1, 1<<32 - 500_000}, // begins in a section
	} {
		t.Run(fmt.Sprintf("%d files at %d", c.files, c.offset), func(t *testing.T) {
			whole, ours := sha256.New(), sha256.New()
			want := zip.NewWriter(whole)
			want.SetOffset(c.offset)
			got := &zipArchive{to: ours, written: c.offset}
			for i := range c.files {
				name := fmt.Sprintf("frames/%06d é.png", i)
				f := &job.File{Modified: modified.Add(time.Duration(i) * time.Minute)}
				for _, add := range []func() (io.Writer, error){
					func() (io.Writer, error) {
						return want.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: f.Modified})
					},
					func() (io.Writer, error) { return got.add(name, f) },
				} {
					to, err := add()
					if err == nil {
						_, err = io.WriteString(to, name[:i%len(name)])
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := want.Close(); err != nil {
				t.Fatal(err)
			}
			if err := got.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(whole.Sum(nil), ours.Sum(nil)) {
				t.Error("the zip file differs")
			}
		})
	}
}

// TestZipOfOddNames has names that end a directory as a zip64 one ends.
func TestZipOfOddNames(t *testing.T) {
	for _, at := range []time.Time{{}, modified} {
		extra := 0
		if !at.IsZero() {
			extra = 9 // the time, after the name
		}
		name := "a" + "PK\x06\x07" + strings.Repeat("b", zip64LocatorLength-4-extra)
		var text bytes.Buffer
		a := newZip(&text)
		if err := addFile(a, name, &job.File{Body: io.NopCloser(strings.NewReader("x")), Size: 1, Modified: at}, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		read, err := zip.NewReader(bytes.NewReader(text.Bytes()), int64(text.Len()))
		if err != nil || len(read.File) != 1 || read.File[0].Name != name {
			t.Errorf("%+v, %v", read, err)
		}
	}
}

// manyOutputs is a service with a job of many outputs, which are listed as they are asked
// for.
type manyOutputs struct {
	*fake
	files          int
	listed, opened int
	ahead          int // the most files that were listed and not yet opened
	heap           uint64
}

func (m *manyOutputs) Outputs(context.Context, job.ID) iter.Seq2[job.FileInfo, error] {
	return func(yield func(job.FileInfo, error) bool) {
		for i := range m.files {
			m.listed++
			m.ahead = max(m.ahead, m.listed-m.opened)
			if !yield(job.FileInfo{Name: fmt.Sprintf("frames/%08d.png", i), Size: 1, ETag: `"0123456789abcdef0123456789abcdef"`, Modified: modified}, nil) {
				return
			}
		}
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		m.heap = now.HeapAlloc
	}
}

func (m *manyOutputs) Output(context.Context, job.ID, string, *job.Range) (*job.File, error) {
	m.opened++
	return &job.File{Body: io.NopCloser(strings.NewReader("x")), Size: 1, Modified: modified}, nil
}

// discarded is a response of which only the status is kept.
type discarded struct {
	header http.Header
	status int
	bytes  int64
}

func (d *discarded) Header() http.Header    { return d.header }
func (d *discarded) WriteHeader(status int) { d.status = status }
func (d *discarded) Write(p []byte) (int, error) {
	d.bytes += int64(len(p))
	return len(p), nil
}

// TestManyOutputsInMemory has a job's outputs answered in each way there is, and looks
// what is held of them when the last one was listed: 40,000 take no more than
// 10,000, but for the zip file's directory.
func TestManyOutputsInMemory(t *testing.T) {
	heap := func(path string, files int) uint64 {
		m := &manyOutputs{fake: newFake(), files: files}
		m.add("done", job.Done)
		w := &discarded{header: http.Header{}}
		New(Config{Service: m}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.status != http.StatusOK || m.listed < files || w.bytes < int64(files) {
			t.Errorf("%s of %d files: status %d, %d bytes of %d files", path, files, w.status, w.bytes, m.listed)
		}
		if m.opened > 0 && m.ahead > 1 {
			t.Errorf("%s of %d files: %d were listed before the first of them was opened", path, files, m.ahead)
		}
		return m.heap
	}
	for path, most := range map[string]int{ // bytes for each file
		"/jobs/done/outputs.tar": 16,
		"/jobs/done/outputs.zip": 40,
		"/jobs/done/outputs":     16,
	} {
		const more = 30_000
		few, many := heap(path, streamedFiles+1), heap(path, streamedFiles+1+more)
		t.Logf("%s: %d KiB of heap with %d files, %d KiB with %d more", path, few>>10, streamedFiles+1, many>>10, more)
		if held := (int(many) - int(few)) / more; held >= most {
			t.Errorf("%s: %d bytes are held for each file", path, held)
		}
	}
}
