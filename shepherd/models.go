package shepherd

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// Models fetches models ahead of the jobs that need them, and removes them. It also works
// without a Shepherd, as long as no other daemon uses the ledger.
type Models struct {
	ledger ledger.Ledger
	log    *slog.Logger
	// loaded returns the name of a sheep that has the model loaded, or "".
	loaded func(job.Model) string

	mu      sync.Mutex
	members []Member
}

// NewModels returns the Models of these sheep, assuming that no sheep has a model loaded.
func NewModels(l ledger.Ledger, members []Member, log *slog.Logger) *Models {
	return &Models{ledger: l, members: members, log: log, loaded: func(job.Model) string { return "" }}
}

// of returns the current sheep.
func (m *Models) of() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.members
}

// use replaces the sheep.
func (m *Models) use(members []Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members = members
}

// Pull fetches the newest version of the model for one sheep or, with an empty name, for all
// sheep that fetch models. It reports its progress until it returns. The error is
// *job.Invalid, *job.UnknownSheep, job.ErrNoModels or *job.ModelError, or ctx's.
func (m *Models) Pull(ctx context.Context, model job.Model, sheep string, report func(job.PullProgress)) error {
	if err := model.Validate(); err != nil {
		return &job.Invalid{Field: "model", Problem: err.Error()}
	}
	var keepers []runtime.ModelKeeper
	names := make(map[runtime.ModelKeeper][]string)
	known := sheep == ""
	for _, member := range m.of() {
		if sheep != "" && member.Name != sheep {
			continue
		}
		known = true
		if member.Models == nil {
			continue
		}
		if names[member.Models] == nil {
			keepers = append(keepers, member.Models)
		}
		names[member.Models] = append(names[member.Models], member.Name)
	}
	switch {
	case !known:
		return &job.UnknownSheep{Name: sheep}
	case len(keepers) == 0 && sheep != "":
		return &job.Invalid{Field: "sheep_id", Problem: fmt.Sprintf("sheep `%s` fetches no models: there is nothing to pull", sheep)}
	case len(keepers) == 0:
		return job.ErrNoModels
	}
	began := time.Now()
	m.log.Info("Pulling a model ahead of time", "model", model.String())
	for _, k := range keepers {
		if err := k.Pull(ctx, model, names[k], report); err != nil {
			return err
		}
	}
	m.log.Info("Model pulled", "model", model.String(), "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// List lists the models kept on this machine. The error is *job.ModelError or ctx's.
func (m *Models) List(ctx context.Context) ([]job.KeptModel, error) {
	list := []job.KeptModel{}
	for _, k := range m.keepers() {
		more, err := k.List(ctx)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// Remove removes a model that no sheep has loaded and no unfinished job needs. The error is
// *job.ModelNeeded, job.ErrNoModels, *job.Invalid or *job.ModelError, with class
// errdefs.ErrNotFound if the model is not on this machine; or it has the ledger's class.
func (m *Models) Remove(ctx context.Context, model job.Model) error {
	keepers := m.keepers()
	if len(keepers) == 0 {
		return job.ErrNoModels
	}
	if err := model.Validate(); err != nil {
		return &job.Invalid{Field: "model", Problem: err.Error()}
	}
	removed := false
	var absent error
	for _, k := range keepers {
		err := k.Remove(ctx, model, func(written job.Model) error { return m.needed(ctx, written) })
		switch {
		case err == nil:
			removed = true
		case errdefs.IsNotFound(err):
			absent = err
		default:
			return err
		}
	}
	if !removed {
		return absent
	}
	m.log.Info("Model removed", "model", model.String())
	return nil
}

// needed returns *job.ModelNeeded if a job or a sheep needs the model.
func (m *Models) needed(ctx context.Context, model job.Model) error {
	open := ledger.Filter{States: []job.State{job.Queued, job.Processing}, Model: model}
	records, _, err := m.ledger.List(ctx, open, 0, 1)
	if err != nil {
		return fmt.Errorf("look for jobs that need model %s: %w", model, err)
	}
	if len(records) > 0 {
		return &job.ModelNeeded{Model: model, Job: records[0].ID}
	}
	if sheep := m.loaded(model); sheep != "" {
		return &job.ModelNeeded{Model: model, Sheep: sheep}
	}
	return nil
}

// keepers returns the sheep's model keepers, each once.
func (m *Models) keepers() []runtime.ModelKeeper {
	var found []runtime.ModelKeeper
	seen := make(map[runtime.ModelKeeper]bool)
	for _, member := range m.of() {
		if member.Models != nil && !seen[member.Models] {
			seen[member.Models] = true
			found = append(found, member.Models)
		}
	}
	return found
}

// NeededModels lists the models of all unfinished jobs, each once.
func NeededModels(ctx context.Context, l ledger.Ledger) ([]job.Model, error) {
	const page = 1000
	open := ledger.Filter{States: []job.State{job.Queued, job.Processing}}
	var needed []job.Model
	seen := make(map[job.Model]bool)
	for cursor := int64(0); ; {
		records, next, err := l.List(ctx, open, cursor, page)
		if err != nil {
			return nil, fmt.Errorf("list the models of jobs: %w", err)
		}
		for _, r := range records {
			if !seen[r.Model] {
				seen[r.Model] = true
				needed = append(needed, r.Model)
			}
		}
		if next == 0 {
			return needed, nil
		}
		cursor = next
	}
}

// loadedBy returns the name of a sheep whose runner has the model loaded or is loading it,
// or "".
func (f *flock) loadedBy(m job.Model) string {
	for _, l := range f.all() {
		if l.state.has(m) {
			return l.Name
		}
	}
	return ""
}

// PullModel fetches a model ahead of jobs; see Models.Pull.
func (s *Shepherd) PullModel(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error {
	return s.models.Pull(ctx, m, sheep, report)
}

// Models lists the models kept on this machine; see Models.List.
func (s *Shepherd) Models(ctx context.Context) ([]job.KeptModel, error) { return s.models.List(ctx) }

// RemoveModel removes a model from this machine; see Models.Remove.
func (s *Shepherd) RemoveModel(ctx context.Context, m job.Model) error {
	return s.models.Remove(ctx, m)
}

// mayRun returns *job.Untrusted for a model that this sheep must not load.
func (l *lane) mayRun(m job.Model) error {
	pin, err := l.trust.Check(m)
	if err == nil && pin != "" && !checksDigests(l.Sheep) {
		err = undigested(m)
	}
	return err
}

// mayLoad is mayRun with a *runtime.LoadError. It is checked again before each load, because
// the rules may have changed since the job was submitted, and differ between sheep.
func (l *lane) mayLoad(m job.Model) error {
	if err := l.mayRun(m); err != nil {
		return &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrFailedPrecondition}
	}
	return nil
}

func checksDigests(sheep runtime.Sheep) bool {
	c, ok := sheep.(runtime.DigestChecker)
	return ok && c.ChecksDigests()
}

func undigested(m job.Model) error {
	return &job.Untrusted{Model: m, Reason: "is trusted with a certain digest (models.allow), and only container sheep know those"}
}
