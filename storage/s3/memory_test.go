package s3_test

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
)

// TestMemory sends and fetches a file and bounds what that adds to the memory of
// this process at its peak, far below the file's size.
func TestMemory(t *testing.T) {
	const most, size = 48 << 20, int64(320 << 20)
	server := testenv.StartMinIO(t)
	store := open(t, s3.Config{URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	fatal(t, store.Init(t.Context(), "memory", []byte("payload")))
	dir := t.TempDir()
	sparse(t, filepath.Join(dir, "outputs/large"), size)

	grown := growth(t, func() {
		_, err := store.Collect(t.Context(), "memory", openRoot(t, dir), true)
		fatal(t, err)
	})
	t.Logf("Collect adds %d KiB", grown>>10)
	if grown > most {
		t.Errorf("Collect adds %d bytes of memory", grown)
	}

	_, err := client(t, server.URL, server.AccessKey, server.SecretKey).CopyObject(t.Context(), minio.CopyDestOptions{Bucket: "memory", Object: "inputs/large"}, minio.CopySrcOptions{Bucket: "memory", Object: "outputs/large"})
	fatal(t, err)
	grown = growth(t, func() {
		if staged, err := store.Stage(t.Context(), "memory", openRoot(t, dir), storage.Options{}); err != nil || staged.Bytes != size+int64(len("payload")) {
			t.Fatalf("%d bytes staged, %v", staged.Bytes, err)
		}
	})
	t.Logf("Stage adds %d KiB", grown>>10)
	if grown > most {
		t.Errorf("Stage adds %d bytes of memory", grown)
	}
	fatal(t, os.RemoveAll(filepath.Join(dir, "inputs")))

	file, err := os.Open(filepath.Join(dir, "outputs/large"))
	fatal(t, err)
	defer file.Close()
	grown = growth(t, func() { fatal(t, store.Put(t.Context(), "memory", "inputs/put", plainReader{file}, size)) })
	t.Logf("Put adds %d KiB", grown>>10)
	if grown > most {
		t.Errorf("Put adds %d bytes of memory", grown)
	}
}

// plainReader hides that a file can do more than be read.
type plainReader struct{ file *os.File }

func (r plainReader) Read(p []byte) (int, error) { return r.file.Read(p) }

// sparse makes a file that takes no room.
func sparse(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// growth is by how many bytes this process's resident memory, at its peak while
// run runs, exceeds what it was before.
func growth(t testing.TB, run func()) int64 {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // reset the peak
		t.Fatal(err)
	}
	before := memory(t, "VmRSS")
	run()
	return memory(t, "VmHWM") - before
}

func memory(t testing.TB, field string) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(field + `:\s*(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no %s in /proc/self/status", field)
	}
	kib, _ := strconv.ParseInt(string(match[1]), 10, 64)
	return kib << 10
}
