package s3

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/iterait/shepherd/job"
)

// maxSubmissions bounds how many buckets without an input are remembered.
const maxSubmissions = 10_000

// submissions remembers the jobs whose bucket this daemon, or an earlier one that was
// killed, may have made without getting the input into it: their clients try
// again and must not be told that the id is taken.
//
// With a folder, each is an empty file there, so that a kill loses none. Nothing
// is synced: after a power cut an empty bucket counts as somebody's.
type submissions struct {
	folder string // empty: only memory

	mu  sync.Mutex
	ids map[job.ID]struct{}
}

// openSubmissions reads what an earlier daemon left.
func openSubmissions(folder string) (*submissions, error) {
	s := &submissions{folder: folder, ids: make(map[job.ID]struct{})}
	if folder == "" {
		return s, nil
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
			s.ids[id] = struct{}{}
		}
	}
	return s, nil
}

// begin remembers the job, and says whether it was remembered already. A full set
// forgets some other job.
func (s *submissions) begin(id job.ID) (already bool, err error) {
	s.mu.Lock()
	_, already = s.ids[id]
	var forgotten job.ID
	if !already && len(s.ids) >= maxSubmissions {
		for forgotten = range s.ids {
			break
		}
		delete(s.ids, forgotten)
	}
	s.ids[id] = struct{}{}
	s.mu.Unlock()
	if s.folder == "" || already {
		return already, nil
	}
	if forgotten != "" {
		_ = os.Remove(s.path(forgotten))
	}
	f, err := os.OpenFile(s.path(id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return already, fmt.Errorf("remember that job %s is submitted: %w", id, err)
	}
	return already, f.Close()
}

// end forgets the job: its place is whole, or is not ours.
func (s *submissions) end(id job.ID) error {
	s.mu.Lock()
	delete(s.ids, id)
	s.mu.Unlock()
	if s.folder == "" {
		return nil
	}
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget that job %s is submitted: %w", id, err)
	}
	return nil
}

func (s *submissions) path(id job.ID) string { return filepath.Join(s.folder, string(id)) }
