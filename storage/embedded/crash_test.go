package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage/embedded"
)

// victimDir names the directory that a copy of this test serves until it is
// killed.
const victimDir = "SHEPHERD_TEST_VICTIM_DIR"

func runVictim(dir string) {
	go func() { // the test's process holds the other end: with it this one ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	s, err := embedded.Open(embedded.Config{
		Dir: dir, Listen: "127.0.0.1:0", AccessKey: accessKey, SecretKey: secretKey, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err == nil {
		fmt.Println(s.Addr())
		err = s.Serve(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// victim starts a process that serves dir.
func victim(t testing.TB, dir string) (*server, *exec.Cmd) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return &server{t: t, dir: dir, addr: strings.TrimSpace(addr)}, cmd
}

// writer does one thing after another to objects of its own, and knows what
// each may hold: what was acknowledged last, or what was asked for since.
type writer struct {
	prefix string
	rnd    *rand.Rand
	may    map[string][][]byte // nil stands for no object
}

// work goes on until the server dies. acked is called for each answer.
func (w *writer) work(ctx context.Context, c *minio.Core, bucket string, acked func()) {
	for {
		key := fmt.Sprintf("%s/%d/x", w.prefix, w.rnd.IntN(6))
		var data []byte
		var err error
		what := w.rnd.IntN(10)
		if what > 0 {
			data = random(w.rnd.Uint64(), []int{100, 5000, 300_000, 1 << 20}[w.rnd.IntN(4)])
			if what < 3 { // in two parts, the first as large as it must be
				data = append(random(w.rnd.Uint64(), 5<<20), data...)
			}
		}
		before := w.may[key]
		if before == nil {
			before = [][]byte{nil}
		}
		w.may[key] = append(slices.Clone(before), data)
		switch {
		case what == 0:
			err = c.RemoveObject(ctx, bucket, key, minio.RemoveObjectOptions{})
		case what < 3:
			err = uploadInParts(ctx, c, bucket, key, data)
		default:
			_, err = c.Client.PutObject(ctx, bucket, key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{})
		}
		if err != nil {
			return
		}
		w.may[key] = [][]byte{data}
		acked()
	}
}

func uploadInParts(ctx context.Context, c *minio.Core, bucket, key string, data []byte) error {
	id, err := c.NewMultipartUpload(ctx, bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return err
	}
	var parts []minio.CompletePart
	for i, piece := range [][]byte{data[:5<<20], data[5<<20:]} {
		p, err := c.PutObjectPart(ctx, bucket, key, id, i+1, bytes.NewReader(piece), int64(len(piece)), minio.PutObjectPartOptions{})
		if err != nil {
			return err
		}
		parts = append(parts, minio.CompletePart{PartNumber: i + 1, ETag: p.ETag})
	}
	_, err = c.CompleteMultipartUpload(ctx, bucket, key, id, parts, minio.PutObjectOptions{})
	return err
}

// TestKilled kills the server with SIGKILL in the midst of traffic, again and
// again, and looks at what is left.
func TestKilled(t *testing.T) {
	dir, rounds, seed := t.TempDir(), 12, rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var writers []*writer
	for i := range 8 {
		writers = append(writers, &writer{prefix: fmt.Sprint("w", i), rnd: rand.New(rand.NewPCG(seed, uint64(i+1))), may: map[string][][]byte{}})
	}
	for round := range rounds {
		s, process := victim(t, dir)
		core := s.core()
		if round == 0 {
			s.bucket(core.Client, "crash")
		}
		var left atomic.Int64
		left.Store(1 + rnd.Int64N(150))
		var wg sync.WaitGroup
		for _, w := range writers {
			wg.Go(func() {
				w.work(t.Context(), core, "crash", func() {
					if left.Add(-1) == 0 {
						process.Process.Kill() // the others are in the midst of something
					}
				})
			})
		}
		wg.Wait()
		if left.Load() > 0 {
			t.Errorf("round %d: the writers have ended before the server was killed", round)
			_ = process.Process.Kill()
		}
		_ = process.Wait()
		verifyAfterKill(t, dir, writers)
	}
}

// verifyAfterKill opens what a killed server left, and settles what may be.
func verifyAfterKill(t *testing.T, dir string, writers []*writer) {
	t.Helper()
	s := start(t, dir)
	defer s.stop()
	c := s.client(nil)
	litter, err := filepath.Glob(filepath.Join(dir, "tmp", "*", "*"))
	if err != nil || len(litter) > 0 {
		t.Errorf("litter: %q, %v", litter, err)
	}
	// All data belongs to an object.
	data, err := filepath.Glob(filepath.Join(dir, "parts", "*"))
	if err != nil {
		t.Fatal(err)
	}
	inParts := 0
	listed := map[string]int64{}
	for o := range c.ListObjectsIter(t.Context(), "crash", minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		listed[o.Key] = o.Size
		if strings.HasSuffix(o.ETag, "-2") {
			inParts++
		}
	}
	if len(data) != inParts {
		t.Errorf("%d objects in parts and the data of %d", inParts, len(data))
	}
	for _, w := range writers {
		for key, may := range w.may {
			var got []byte
			if size, there := listed[key]; there {
				if got = get(t, c, "crash", key); int64(len(got)) != size {
					t.Errorf("%s: %d bytes, listed with %d", key, len(got), size)
				}
			}
			delete(listed, key)
			if !slices.ContainsFunc(may, func(b []byte) bool { return (b == nil) == (got == nil) && bytes.Equal(b, got) }) {
				t.Errorf("%s holds %d bytes that are none of what %d answers allow", key, len(got), len(may))
			}
			w.may[key] = [][]byte{got}
		}
	}
	if len(listed) > 0 {
		t.Errorf("objects nobody stored: %v", listed)
	}
	if logs := s.logs.String(); strings.Contains(logs, "level=ERROR") {
		t.Errorf("the server logged:\n%s", logs)
	}
}
