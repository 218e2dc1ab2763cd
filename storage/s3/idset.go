package s3

import (
	"sync"

	"github.com/iterait/shepherd/job"
)

// maxRemembered bounds an idSet. It is more than an outage leaves behind before
// somebody looks at it.
const maxRemembered = 10_000

// idSet is a bounded set of job ids; a full one forgets some other id. The zero
// value is empty and ready to use.
type idSet struct {
	mu  sync.Mutex
	ids map[job.ID]struct{}
}

func (s *idSet) has(id job.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ids[id]
	return ok
}

func (s *idSet) add(id job.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = make(map[job.ID]struct{})
	}
	for other := range s.ids {
		if len(s.ids) < maxRemembered {
			break
		}
		delete(s.ids, other)
	}
	s.ids[id] = struct{}{}
}

func (s *idSet) drop(id job.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}
