package memory

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
)

var _ storage.Fencer = (*Store)(nil)

// apart are outputs in the directory of an attempt.
type apart struct {
	store *Store
	id    job.ID
	below string
	names []string
	done  storage.Collected
}

// CollectApart implements storage.Fencer.
func (s *Store) CollectApart(ctx context.Context, id job.ID, attempt int64, root *os.Root) (storage.Apart, error) {
	outputs, collected, err := s.outputs(ctx, id, root)
	if err != nil {
		return nil, fmt.Errorf("collect outputs of job %s: %w", id, err)
	}
	a := &apart{store: s, id: id, below: places.AttemptDir(attempt), done: collected}
	err = s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return nil, storage.ErrNotFound
		}
		for name, f := range outputs {
			place[a.below+name] = f
			a.names = append(a.names, name)
		}
		return place, nil
	})
	return a, err
}

// Fence implements storage.Fencer.
func (s *Store) Fence(ctx context.Context, id job.ID, attempt int64) error {
	return s.change(ctx, id, func(place map[string]file) (map[string]file, error) {
		maps.DeleteFunc(place, func(name string, _ file) bool {
			other, _, ok := places.ApartName(name)
			return ok && other != attempt
		})
		return place, nil
	})
}

func (a *apart) Collected() storage.Collected { return a.done }

// Promote implements storage.Apart. The outputs change all at once.
func (a *apart) Promote(ctx context.Context, replace bool) error {
	return a.store.change(ctx, a.id, func(place map[string]file) (map[string]file, error) {
		if place == nil {
			return nil, storage.ErrNotFound
		}
		outputs := make(map[string]file)
		for _, name := range a.names {
			f, ok := place[a.below+name]
			if !ok {
				return nil, storage.ErrFenced
			}
			outputs[name] = f
		}
		setOutputs(place, outputs, replace)
		return place, nil
	})
}

// Discard implements storage.Apart.
func (a *apart) Discard(ctx context.Context) error {
	return a.store.change(ctx, a.id, func(place map[string]file) (map[string]file, error) {
		maps.DeleteFunc(place, func(name string, _ file) bool { return strings.HasPrefix(name, a.below) })
		return place, nil
	})
}
