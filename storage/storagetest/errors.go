package storagetest

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// testErrors tells apart what is not there, not allowed and not reachable.
func (s *suite) testErrors(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	outputs := t.TempDir()
	write(t, outputs, map[string]string{"outputs/output": "x"})
	dir := openRoot(t, outputs)

	calls := func(ctx context.Context, store storage.Store) map[string]error {
		staged := openRoot(t, t.TempDir())
		errs := make(map[string]error)
		var mu sync.Mutex
		var group sync.WaitGroup
		for name, call := range map[string]func() error{
			"Exists":    func() error { _, err := store.Exists(ctx, id); return err },
			"Init":      func() error { return store.Init(ctx, id, []byte("x")) },
			"Stage":     func() error { _, err := store.Stage(ctx, id, staged, storage.Options{}); return err },
			"Collect":   func() error { _, err := store.Collect(ctx, id, dir, true); return err },
			"Open":      func() error { _, err := store.Open(ctx, id, input, nil); return err },
			"Put":       func() error { return store.Put(ctx, id, input, strings.NewReader("x"), 1) },
			"List":      func() error { _, err := All(store.List(ctx, id, "")); return err },
			"Status":    func() error { _, err := store.Status(ctx, id); return err },
			"SetStatus": func() error { return store.SetStatus(ctx, id, job.Status{State: job.Queued}) },
			"Remove":    func() error { return store.Remove(ctx, id) },
			"Ping":      func() error { return store.Ping(ctx) },
		} {
			group.Go(func() {
				err := call()
				mu.Lock()
				defer mu.Unlock()
				errs[name] = err
			})
		}
		group.Wait()
		return errs
	}
	check := func(t *testing.T, errs map[string]error, is func(error) bool, words ...string) {
		t.Helper()
		for call, err := range errs {
			class(t, call, err, is)
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %q does not say %q", call, err, word)
				}
			}
			if s.served() && strings.Contains(err.Error(), s.SecretKey) {
				t.Errorf("%s: the error holds the secret key", call)
			}
		}
	}

	t.Run("Ping", func(t *testing.T) { noError(t, s.store.Ping(t.Context())) })

	if s.served() {
		t.Run("Unreachable", func(t *testing.T) {
			address := fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t))
			check(t, calls(t.Context(), s.Open(t, address, s.AccessKey, s.SecretKey)), errdefs.IsUnavailable, address, "not reachable")
		})

		t.Run("UnknownKey", func(t *testing.T) {
			if s.HidesUnknownKeys {
				t.Skip("the server does not tell an unknown key from a file that is not there")
			}
			check(t, calls(t.Context(), s.Open(t, s.URL, "nobody-knows-me", s.SecretKey)), errdefs.IsPermissionDenied, "nobody-knows-me", "storage.access_key")
		})

		t.Run("WrongSecret", func(t *testing.T) {
			wrong := s.SecretKey + "-wrong"
			errs := calls(t.Context(), s.Open(t, s.URL, s.AccessKey, wrong))
			check(t, errs, errdefs.IsPermissionDenied, s.AccessKey)
		})
	}

	t.Run("Canceled", func(t *testing.T) {
		check(t, calls(canceled(), s.store), errdefs.IsCanceled)
	})

	t.Run("NothingChanged", func(t *testing.T) {
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload"})
	})

	t.Run("CanceledBody", func(t *testing.T) {
		id := s.fresh(t, nil)
		// The rest of a small file has arrived before the cancellation.
		for name, size := range map[string]int{"outputs/small": 2000, "outputs/big": 8 << 20} {
			s.put(t, id, name, noise(size))
			ctx, cancel := context.WithCancel(t.Context())
			file, err := s.store.Open(ctx, id, name, nil)
			noError(t, err)
			_, err = io.CopyN(io.Discard, file.Body, 1000)
			noError(t, err)
			cancel()
			n, err := file.Body.Read(make([]byte, 1000))
			class(t, "read of "+name+" after cancel", err, errdefs.IsCanceled)
			if n != 0 {
				t.Errorf("%s yields %d bytes after cancel", name, n)
			}
			noError(t, file.Body.Close())
			if n, err := file.Body.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("a closed body yields %d bytes, %v", n, err)
			}
		}
	})

	if s.Bucket != "" {
		return
	}
	t.Run("NoPlace", func(t *testing.T) {
		unknown := s.id()
		class(t, "Put", s.store.Put(t.Context(), unknown, input, strings.NewReader("x"), 1), errdefs.IsNotFound)
		class(t, "SetStatus", s.store.SetStatus(t.Context(), unknown, job.Status{State: job.Queued}), errdefs.IsNotFound)
	})
}
