package embedded_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// TestDamagedFiles has the disk damage files of a job: what cannot be read is told as such,
// no job runs without an input that it has, and all is removed with the job.
func TestDamagedFiles(t *testing.T) {
	s := start(t, t.TempDir())
	for _, bucket := range []string{"", "shared"} {
		store, err := s.server.Store(bucket, nil)
		if err != nil {
			t.Fatal(err)
		}
		place := func(id job.ID) string { return filepath.Join(s.dir, "buckets", bucket, string(id)) }
		damage := func(id job.ID, name string) {
			t.Helper()
			if err := os.Truncate(filepath.Join(place(id), name+"@"), 3); err != nil {
				t.Fatal(err)
			}
		}
		made := func(id job.ID) job.ID {
			t.Helper()
			if err := store.Init(t.Context(), id, []byte("payload")); err != nil {
				t.Fatal(err)
			}
			if err := store.SetStatus(t.Context(), id, job.Status{State: job.Queued}); err != nil {
				t.Fatal(err)
			}
			return id
		}
		stage := func(id job.ID, after ...job.ID) (storage.Staged, error) {
			root, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			return store.Stage(t.Context(), id, root, storage.Options{After: after})
		}

		state := made("damaged-state")
		damage(state, "job_status.json")
		if _, err := store.Status(t.Context(), state); !errdefs.IsDataLoss(err) {
			t.Errorf("a damaged state: %v", err)
		}
		if staged, err := stage(state); staged.Files != 1 || err != nil {
			t.Errorf("inputs beside a damaged state: %+v, %v", staged, err)
		}
		if err := store.SetStatus(t.Context(), state, job.Status{State: job.Queued}); err != nil {
			t.Errorf("a damaged state is not replaced: %v", err)
		}

		input := made("damaged-input")
		damage(input, "inputs/input")
		if _, err := stage(input); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "inputs/input") || !strings.Contains(err.Error(), "upload the object again, or restore the file from a backup") {
			t.Errorf("a damaged input: %v", err)
		} else if strings.Contains(err.Error(), s.dir) { // the error becomes the job's reason, which its client reads
			t.Errorf("the error names a path of the server: %v", err)
		}
		if err := store.Init(t.Context(), input, []byte("payload")); !errdefs.IsAlreadyExists(err) {
			t.Errorf("a place with a damaged input is made again: %v", err)
		}

		output := made("damaged-output")
		for _, name := range []string{"outputs/a", "outputs/b"} {
			if err := os.MkdirAll(filepath.Join(place(output), "outputs"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(place(output), name+"@"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if staged, err := stage(output); !staged.Outputs || err != nil {
			t.Errorf("damaged outputs of an earlier run: %+v, %v", staged, err)
		}
		if _, err := stage(made("later-one"), output); !errdefs.IsDataLoss(err) {
			t.Errorf("damaged outputs as inputs: %v", err)
		}

		var listed []string
		for file, err := range store.List(t.Context(), output, "outputs/") {
			if err != nil || file.Modified.IsZero() {
				t.Errorf("damaged outputs are listed as %+v, %v", file, err)
			}
			if _, err := store.Open(t.Context(), output, file.Name, nil); !errdefs.IsDataLoss(err) {
				t.Errorf("a damaged output is opened: %v", err)
			}
			listed = append(listed, file.Name)
		}
		if strings.Join(listed, " ") != "outputs/a outputs/b" {
			t.Errorf("of the damaged outputs %q are listed", listed)
		}

		for _, id := range []job.ID{state, input, output} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // instead of removing for ever
			if err := store.Remove(ctx, id); err != nil {
				t.Errorf("remove %s: %v", id, err)
			}
			cancel()
			if exists, err := store.Exists(t.Context(), id); exists || err != nil {
				t.Errorf("%s after its removal: %t, %v", id, exists, err)
			}
		}
	}
}
