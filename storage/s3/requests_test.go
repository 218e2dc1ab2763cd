package s3_test

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
)

// TestRequests counts what a job with one small input and one small output
// costs: seven requests and not one more.
func TestRequests(t *testing.T) {
	server := testenv.StartMinIO(t)
	makeBucket(t, server, "shared")
	for name, c := range map[string]struct {
		bucket      string
		init, taken map[string]int
	}{
		"BucketPerJob": {"", map[string]int{"PUT": 2}, map[string]int{"PUT": 1, "GET": 1}},
		"PrefixPerJob": {"shared", map[string]int{"GET": 1, "PUT": 1}, map[string]int{"GET": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := testenv.StartS3Proxy(t, server.URL)
			var mu sync.Mutex
			observed := 0
			store := open(t, s3.Config{URL: proxy.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey, Bucket: c.bucket,
				Observe: func(op string, took time.Duration, _ error) {
					mu.Lock()
					defer mu.Unlock()
					observed++
					if !slices.Contains(s3.Operations(), op) || took <= 0 {
						t.Errorf("told of %q in %v", op, took)
					}
				}})
			if err := store.Init(t.Context(), "first", nil); err != nil { // which finds out what the server does
				t.Fatal(err)
			}
			const id = job.ID("counted")
			dir := t.TempDir()
			for _, step := range []struct {
				name string
				run  func() error
				want map[string]int
			}{
				{"Init", func() error { return store.Init(t.Context(), id, []byte(strings.Repeat("x", 1024))) }, c.init},
				{"Stage", func() error { _, err := store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{}); return err }, map[string]int{"GET": 2}},
				{"Collect", func() error {
					if err := os.WriteFile(filepath.Join(dir, "outputs/output"), make([]byte, 1024), 0o600); err != nil {
						return err
					}
					_, err := store.Collect(t.Context(), id, openRoot(t, dir), false)
					return err
				}, map[string]int{"PUT": 1}},
				{"SetStatus", func() error { return store.SetStatus(t.Context(), id, job.Status{State: job.Done}) }, map[string]int{"PUT": 1}},
				{"Open", func() error {
					file, err := store.Open(t.Context(), id, "outputs/output", nil)
					if err != nil {
						return err
					}
					defer file.Body.Close()
					_, err = io.Copy(io.Discard, file.Body)
					return err
				}, map[string]int{"GET": 1}},
				{"Status", func() error { _, err := store.Status(t.Context(), id); return err }, map[string]int{"GET": 1}},
				{"StageAgain", func() error { _, err := store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{}); return err }, map[string]int{"GET": 1}},
				{"Taken", func() error {
					err := store.Init(t.Context(), id, []byte("another"))
					if errors.Is(err, storage.ErrExists) {
						return nil
					}
					return errors.Join(errors.New("not ErrExists"), err)
				}, c.taken},
				{"Ping", func() error { return store.Ping(t.Context()) }, map[string]int{"GET": 1}},
			} {
				proxy.Reset()
				observed = 0
				if err := step.run(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if got := proxy.Counts(); !maps.Equal(got, step.want) {
					t.Errorf("%s sends %v, want %v: %q", step.name, got, step.want, proxy.Requests())
				}
				if sent := len(proxy.Requests()); observed != sent {
					t.Errorf("%s tells of %d requests of %d", step.name, observed, sent)
				}
			}
		})
	}
}
