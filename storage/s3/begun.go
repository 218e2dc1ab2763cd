package s3

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/iterait/shepherd/job"
)

// maxBegun bounds how many buckets without an input are remembered.
const maxBegun = 10_000

// begun remembers the jobs whose bucket this daemon, or an earlier one that was
// killed, may have made without getting the input into it: their clients try
// again and must not be told that the id is taken.
//
// With a folder, each is an empty file there, so that a kill loses none. Nothing
// is synced: after a power cut an empty bucket counts as somebody's.
type begun struct {
	folder string // empty: only memory

	mu  sync.Mutex
	ids map[job.ID]struct{}
}

// openBegun reads what an earlier daemon left.
func openBegun(folder string) (*begun, error) {
	b := &begun{folder: folder, ids: make(map[job.ID]struct{})}
	if folder == "" {
		return b, nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("remember submissions under way: %w", err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("remember submissions under way: %w", err)
	}
	for _, e := range entries {
		if id, err := job.ParseID(e.Name()); err == nil {
			b.ids[id] = struct{}{}
		}
	}
	return b, nil
}

// add remembers the job, and says whether it was remembered already. A full set
// forgets some other job.
func (b *begun) add(id job.ID) (already bool, err error) {
	b.mu.Lock()
	_, already = b.ids[id]
	var forgotten job.ID
	if !already && len(b.ids) >= maxBegun {
		for forgotten = range b.ids {
			break
		}
		delete(b.ids, forgotten)
	}
	b.ids[id] = struct{}{}
	b.mu.Unlock()
	if b.folder == "" || already {
		return already, nil
	}
	if forgotten != "" {
		_ = os.Remove(b.path(forgotten))
	}
	f, err := os.OpenFile(b.path(id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return already, fmt.Errorf("remember that job %s is submitted: %w", id, err)
	}
	return already, f.Close()
}

// drop forgets the job: its place is whole, or is not ours.
func (b *begun) drop(id job.ID) error {
	b.mu.Lock()
	delete(b.ids, id)
	b.mu.Unlock()
	if b.folder == "" {
		return nil
	}
	if err := os.Remove(b.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget that job %s is submitted: %w", id, err)
	}
	return nil
}

func (b *begun) path(id job.ID) string { return filepath.Join(b.folder, string(id)) }
