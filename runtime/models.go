package runtime

import (
	"context"

	"github.com/iterait/shepherd/job"
)

// ModelChecker is a Sheep that knows, without asking anyone, that some models
// can never be its.
type ModelChecker interface {
	// CheckModel returns a *job.Invalid where the model's name or version cannot
	// be that of a model of this sheep, whatever may be pushed or installed.
	CheckModel(m job.Model) error
}

// DigestChecker is a Sheep that may have been told which digests models must have
// (job.Trust). Where ChecksDigests is true, Load refuses a model with another; a
// sheep that is no DigestChecker knows no digests.
type DigestChecker interface{ ChecksDigests() bool }

// ModelKeeper is a Driver whose sheep fetch their models from elsewhere, to keep
// them on this machine. Its methods may be called at any time and from many
// goroutines.
//
// Their errors are *job.ModelError values, *job.Invalid for a model that cannot
// be, or ctx's.
type ModelKeeper interface {
	// Pull makes the newest version of the model be here, ready to be loaded by
	// the sheep with these names; without names by any. It reports how far it is
	// a few times a second, and not after it has returned; report returns quickly.
	Pull(ctx context.Context, m job.Model, sheep []string, report func(job.PullProgress)) error

	// List lists the models that are here, by name and version.
	List(ctx context.Context) ([]job.KeptModel, error)

	// Remove removes a model and returns when its room on the disk is free. It
	// asks needed before, once for every way in which the model can be written;
	// an error that needed returns is Remove's, and the model stays.
	Remove(ctx context.Context, m job.Model, needed func(job.Model) error) error
}

// ModelFinder is a Sheep that can tell at once whether it has a model.
type ModelFinder interface {
	// FindModel returns the *LoadError that Load would return because the model is
	// not here, of class errdefs.ErrNotFound, and nil where it is or where that is
	// not known. It fetches nothing and returns within milliseconds.
	FindModel(m job.Model) error
}

// ModelAdviser is a Sheep that can tell people where it looks for a model.
type ModelAdviser interface {
	// ModelAdvice is one sentence: what must be where for the sheep to run m, such as a
	// file or an image. Sheep that look in the same place say the same. It fetches
	// nothing and returns within milliseconds; it is empty where there is nothing to say.
	ModelAdvice(m job.Model) string
}

// Prefetcher is a Sheep that can fetch what a model's Load will need while its runner
// has another model.
type Prefetcher interface {
	// Prefetch fetches the model, as far as there is room for it beside the models
	// that are needed now, and tells observe how far it is. It may be called while
	// Load or Run is under way; a Load of the same model meanwhile goes on with what
	// it has fetched. Its errors are those that Load would return.
	Prefetch(ctx context.Context, m job.Model, observe Observer) error
}
