package memory

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage/storagetest"
)

func TestStore(t *testing.T) {
	storagetest.Run(t, func(*testing.T) storagetest.Harness {
		s := new(Store)
		return storagetest.Harness{Store: s, Client: client{s}}
	})
}

// client reaches what is stored beside the Store.
type client struct{ store *Store }

func (c client) MakePlace(ctx context.Context, id job.ID) error {
	return c.store.change(ctx, id, func(map[string]file) (map[string]file, error) { return map[string]file{}, nil })
}

func (c client) Put(ctx context.Context, id job.ID, name string, r io.Reader, _ int64) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return c.store.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		place[name] = file{data, time.Now()}
		return place, nil
	})
}

func (c client) Files(_ context.Context, id job.ID) (map[string]string, error) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	files := make(map[string]string)
	for name, f := range c.store.places[id] {
		files[name] = string(f.data)
	}
	return files, nil
}

// A Store lives in virtual time.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(Store)
		if err := s.Init(t.Context(), "job-1", []byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := s.SetStatus(t.Context(), "job-1", job.Status{State: job.Queued}); err != nil {
			t.Fatal(err)
		}
		files, err := storagetest.All(s.List(t.Context(), "job-1", ""))
		if err != nil || len(files) != 2 || files[1].Modified.Sub(files[0].Modified) != time.Hour {
			t.Errorf("files %+v, %v", files, err)
		}
	})
}
