package runtime

import (
	"context"

	"github.com/iterait/shepherd/job"
)

// ModelChecker is a Sheep that can recognize models that it can never run.
type ModelChecker interface {
	// CheckModel returns a *job.Invalid if the model's name or version is not valid
	// for this sheep, whatever is pushed or installed later. It sends no request.
	CheckModel(m job.Model) error
}

// DigestChecker is a Sheep that may be configured with the digests that models must have
// (job.Trust). If ChecksDigests returns true, Load rejects a model with another digest. A
// sheep that is not a DigestChecker checks no digests.
type DigestChecker interface{ ChecksDigests() bool }

// ModelKeeper is a Driver whose sheep fetch models and store them on this machine. Its
// methods may be called at any time and from many goroutines.
//
// Their errors are *job.ModelError values, *job.Invalid for an invalid model, or ctx's.
type ModelKeeper interface {
	// Pull fetches the newest version of the model, ready to be loaded by the named
	// sheep, or by all sheep if none is named. It calls report a few times a second, and
	// not after it has returned; report must return quickly.
	Pull(ctx context.Context, m job.Model, sheep []string, report func(job.PullProgress)) error

	// List lists the models on this machine, sorted by name and version.
	List(ctx context.Context) ([]job.KeptModel, error)

	// Remove removes a model and returns when its disk space is free. Before, it calls
	// needed for each spelling of the model (such as with and without the version
	// latest). If needed returns an error, Remove returns it and the model stays.
	Remove(ctx context.Context, m job.Model, needed func(job.Model) error) error
}

// ModelFinder is a Sheep that can report at once whether it has a model.
type ModelFinder interface {
	// FindModel returns the *LoadError, of class errdefs.ErrNotFound, with which Load
	// would fail because the model does not exist. It returns nil if the model exists or
	// if that is not known. It fetches nothing and returns within milliseconds.
	FindModel(m job.Model) error
}

// ModelAdviser is a Sheep that can explain where it searches for a model.
type ModelAdviser interface {
	// ModelAdvice returns one sentence that says what must exist where for the sheep to
	// run m, such as a file or an image, or "". Sheep that search in the same place
	// return the same sentence. It fetches nothing and returns within milliseconds.
	ModelAdvice(m job.Model) string
}

// Prefetcher is a Sheep that can fetch a model while its runner has another one.
type Prefetcher interface {
	// Prefetch fetches the model, if there is space for it beside the models that are
	// needed now, and reports its progress to observe. It may be called while Load or
	// Run is under way; a Load of the same model continues with what was fetched. Its
	// errors are those of Load.
	Prefetch(ctx context.Context, m job.Model, observe Observer) error
}
