package shepherd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/ledger"
)

// errSheepChanged is why a job is handed back when its sheep is removed or reconfigured.
var errSheepChanged = errors.New("the sheep's configuration has changed")

// Apply replaces the flock's members while it runs. A member whose Sheep is already running
// is left alone, a new member is started, a member with a known name and another Sheep
// replaces the old one, and a member that is not listed any more is removed.
//
// A lane that ends claims no new jobs. Its running job may finish within drain and is handed
// back unspent after that; then its runner is stopped and its Sheep closed. Jobs addressed
// to a replaced sheep wait for the replacement. Jobs addressed to a removed sheep stay
// queued until a sheep of that name is configured or they are cancelled.
//
// Apply returns when every lane that has to end has ended. An error is returned before
// anything is changed, after closing the new sheep: it has the ledger's class, or is
// job.ErrDraining if the daemon is shutting down.
func (s *Shepherd) Apply(ctx context.Context, members []Member, drain time.Duration) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	var changes []change
	present := s.env.flock.all()
	kept := make(map[*lane]bool)
	for _, m := range members {
		if i := slices.IndexFunc(present, func(l *lane) bool { return l.Sheep == m.Sheep }); i >= 0 {
			kept[present[i]] = true
			continue
		}
		c := change{after: s.newLane(m)}
		if i := slices.IndexFunc(present, func(l *lane) bool { return l.Name == m.Name }); i >= 0 {
			c.before = present[i]
			kept[present[i]] = true
		}
		changes = append(changes, c)
	}
	for _, l := range present {
		if !kept[l] {
			changes = append(changes, change{before: l})
		}
	}

	err := distinct(members)
	if err == nil {
		err = s.admission.admitting()
	}
	if err == nil {
		_, err = s.held(ctx)
	}
	if err != nil {
		for _, c := range changes {
			if c.after != nil {
				s.close(ctx, c.after)
			}
		}
		return err
	}
	var making sync.WaitGroup
	for _, c := range changes {
		if c.after == nil {
			c.before.state.remove()
		}
		making.Go(func() { s.swap(ctx, c, drain) })
	}
	making.Wait()
	s.env.flock.sort(members)
	s.models.use(members)
	return s.admission.admitting()
}

// change replaces lane before by lane after. Either may be nil.
type change struct{ before, after *lane }

func (s *Shepherd) swap(ctx context.Context, c change, drain time.Duration) {
	if c.before != nil {
		defer c.before.life.beginTransition(drain, errSheepChanged)()
		c.before.life.over = true
		c.before.retire(drain, errSheepChanged)
		s.close(ctx, c.before)
		s.log.Info("Sheep has ended", "sheep", c.before.Name)
	}
	switch {
	case c.after == nil:
		s.env.flock.replace(c.before, nil)
		byHolder := s.heldAgain(ctx)
		s.endOthers(map[string][]ledger.Claim{c.before.Name: byHolder[c.before.Name]})
	case s.admission.admitting() != nil:
		s.close(ctx, c.after)
		s.env.flock.replace(c.before, nil)
	default:
		byHolder := s.heldAgain(ctx)
		s.recover(ctx, []*lane{c.after}, byHolder)
		s.env.flock.replace(c.before, c.after)
		s.startLane(c.after, nil)
	}
}

// heldAgain calls held until the ledger answers or the daemon shuts down.
func (s *Shepherd) heldAgain(ctx context.Context) map[string][]ledger.Claim {
	for {
		byHolder, err := s.held(ctx)
		if err == nil {
			return byHolder
		}
		s.log.Error("Cannot look for jobs that a sheep holds; trying again", "error", err)
		if sleep(ctx, time.Second) != nil || s.admission.admitting() != nil {
			return nil
		}
	}
}

// replace swaps lane before for lane after. A nil before adds a lane, a nil after removes
// one.
func (f *flock) replace(before, after *lane) {
	lanes := slices.Clone(f.all())
	i := slices.Index(lanes, before)
	switch {
	case i < 0:
		lanes = append(lanes, after)
	case after == nil:
		lanes = slices.Delete(lanes, i, i+1)
	default:
		lanes[i] = after
	}
	f.set(lanes)
}

// sort orders the lanes like the members.
func (f *flock) sort(members []Member) {
	place := func(l *lane) int {
		return slices.IndexFunc(members, func(m Member) bool { return m.Name == l.Name })
	}
	lanes := slices.Clone(f.all())
	slices.SortStableFunc(lanes, func(a, b *lane) int { return place(a) - place(b) })
	f.set(lanes)
}
