package s3

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/job"
)

// maxSubmissions is how many submissions are recorded at most.
const maxSubmissions = 10_000

// submissionsLog is the name of the log in the directory. No job's id is like it:
// earlier versions had an empty file with each job's id there.
const submissionsLog = "~log"

// minSubmissionsLog is the size, in bytes, below which the log is not rewritten.
const minSubmissionsLog = 1 << 20

// submissions records the jobs whose bucket this daemon, or an earlier one that was
// killed, may have created without storing the input: when their clients try again, the
// id must not count as taken.
//
// With a directory, a log there has a line for each submission that began ("+ID") and
// ended ("-ID"), so that a kill loses none. The log is not synced: after a power failure
// an empty bucket counts as another client's.
type submissions struct {
	folder string // empty: only memory

	mu  sync.Mutex
	ids map[job.ID]struct{}
	log *os.File
	// size is where the next line begins. A line that a full disk cut short is
	// overwritten.
	size    int64
	rewrite int64 // the size above which the log is rewritten
}

// openSubmissions reads the submissions that an earlier daemon recorded.
func openSubmissions(folder string) (*submissions, error) {
	s := &submissions{folder: folder, ids: make(map[job.ID]struct{})}
	if folder == "" {
		return s, nil
	}
	if err := s.read(); err != nil {
		return nil, fmt.Errorf("remember submissions under way: %w", err)
	}
	return s, nil
}

func (s *submissions) read() error {
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return err
	}
	text, err := os.ReadFile(s.path(submissionsLog))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.replay(text)
	entries, err := os.ReadDir(s.folder)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		if id, err := job.ParseID(e.Name()); err == nil {
			s.ids[id] = struct{}{}
			old = append(old, e.Name())
		}
	}
	if err := s.compact(); err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(s.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// replay applies the lines of a log. It ignores what is not a line of a log, as a last
// line that a kill cut short.
func (s *submissions) replay(text []byte) {
	for line := range bytes.Lines(text) {
		line, whole := bytes.CutSuffix(line, []byte("\n"))
		if !whole || len(line) == 0 {
			continue
		}
		id, err := job.ParseID(string(line[1:]))
		if err != nil {
			continue
		}
		switch line[0] {
		case '+':
			s.ids[id] = struct{}{}
		case '-':
			delete(s.ids, id)
		}
	}
}

// compact rewrites the log with the recorded submissions alone.
func (s *submissions) compact() error {
	var text strings.Builder
	for id := range s.ids {
		text.WriteString("+" + string(id) + "\n")
	}
	path := s.path(submissionsLog)
	if err := durable.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return err
	}
	log, err := durable.Open(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if s.log != nil {
		_ = s.log.Close() // it was replaced
	}
	s.log, s.size = log, int64(text.Len())
	s.rewrite = max(minSubmissionsLog, 4*s.size)
	return nil
}

// write adds lines to the log. The mutex is held.
func (s *submissions) write(lines string) error {
	if s.log == nil {
		return nil
	}
	if s.size > s.rewrite {
		return s.compact() // with what the lines say
	}
	if _, err := s.log.WriteAt([]byte(lines), s.size); err != nil {
		return err
	}
	s.size += int64(len(lines))
	return nil
}

// begin records the job's submission, and reports whether it was recorded already. When
// maxSubmissions are recorded it drops one of the others.
func (s *submissions) begin(id job.ID) (already bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, already = s.ids[id]; already {
		return true, nil
	}
	lines := "+" + string(id) + "\n"
	if len(s.ids) >= maxSubmissions {
		for forgotten := range s.ids {
			delete(s.ids, forgotten)
			lines = "-" + string(forgotten) + "\n" + lines
			break
		}
	}
	s.ids[id] = struct{}{}
	if err := s.write(lines); err != nil {
		delete(s.ids, id)
		return false, fmt.Errorf("remember that job %s is submitted: %w", id, err)
	}
	return false, nil
}

// end removes the job's submission: its place is complete, or another client's.
func (s *submissions) end(id job.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, begun := s.ids[id]; !begun {
		return nil
	}
	delete(s.ids, id)
	if err := s.write("-" + string(id) + "\n"); err != nil {
		return fmt.Errorf("forget that job %s is submitted: %w", id, err)
	}
	return nil
}

// close closes the log; begin and end must not be called after it.
func (s *submissions) close() error {
	if s.log == nil {
		return nil
	}
	return s.log.Close()
}

func (s *submissions) path(name string) string { return filepath.Join(s.folder, name) }
