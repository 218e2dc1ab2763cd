package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

var (
	_ runtime.ModelKeeper   = (*Driver)(nil)
	_ runtime.ModelChecker  = (*containers)(nil)
	_ runtime.ModelAdviser  = (*containers)(nil)
	_ runtime.DigestChecker = (*containers)(nil)
	_ runtime.Prefetcher    = (*containers)(nil)
)

// latest is the tag of the image of a model without a version.
const latest = "latest"

// CheckModel returns a *job.Invalid if the model's name and version do not form a
// valid image reference. See runtime.ModelChecker.
func (c *containers) CheckModel(m job.Model) error {
	var invalid *job.Invalid
	if err := c.cfg.Registry.Check(m); errors.As(err, &invalid) {
		return invalid
	}
	return nil // Load reports what is wrong with the registry's URL
}

// ModelAdvice names the image. See runtime.ModelAdviser.
func (c *containers) ModelAdvice(m job.Model) string {
	reference, err := c.cfg.Registry.Reference(m)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("A container sheep runs the image `%s`: `shepherd models pull %s` says whether the registry has it.", reference, m)
}

// ChecksDigests returns true: Load refuses images that do not have the digests of
// Config.Trust. See runtime.DigestChecker.
func (c *containers) ChecksDigests() bool { return true }

// Pull pulls a model's image for each snapshotter of the sheep, whatever their
// pull policy. See runtime.ModelKeeper.
func (d *Driver) Pull(ctx context.Context, m job.Model, sheep []string, report func(job.PullProgress)) error {
	if err := d.cfg.Registry.Check(m); err != nil {
		return modelError(ctx, err)
	}
	for _, snapshotter := range d.snapshottersOf(sheep) {
		store, err := d.host.store(ctx, storeKey{snapshotter, image.Always})
		if err == nil {
			_, err = store.Ensure(ctx, m, func(p image.Progress) {
				report(job.PullProgress{Text: p.String(), Done: p.Done, Total: p.Total, Rate: p.Rate})
			})
		}
		if err != nil {
			return modelError(ctx, err)
		}
	}
	return nil
}

// List lists the images of this registry. See runtime.ModelKeeper.
func (d *Driver) List(ctx context.Context) ([]job.KeptModel, error) {
	// Images belong to the namespace, not to a snapshotter: each store lists all of
	// them, with the size that they take in its own snapshotter. Where sheep use
	// several snapshotters, the largest size counts.
	byModel := map[job.Model]job.KeptModel{}
	for i, snapshotter := range d.snapshottersOf(nil) {
		store, err := d.host.store(ctx, storeKey{snapshotter, image.Always})
		var found []image.Info
		if err == nil {
			found, err = store.List(ctx)
		}
		if err != nil {
			return nil, modelError(ctx, err)
		}
		for _, img := range found {
			if img.Model.IsZero() {
				continue
			}
			k := byModel[img.Model]
			if i == 0 {
				k = job.KeptModel{Model: img.Model, Reference: img.Reference, Digest: img.Digest.String(), LastUsed: img.LastUsed, InUse: img.InUse}
			}
			k.Size, k.Own = max(k.Size, img.Size), max(k.Own, img.Own)
			byModel[img.Model] = k
		}
	}
	list := make([]job.KeptModel, 0, len(byModel))
	for _, k := range byModel {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b job.KeptModel) int {
		return cmp.Or(cmp.Compare(a.Model.Name, b.Model.Name), cmp.Compare(a.Model.Version, b.Model.Version))
	})
	return list, nil
}

// Remove removes a model's image. See runtime.ModelKeeper.
func (d *Driver) Remove(ctx context.Context, m job.Model, needed func(job.Model) error) error {
	if err := d.cfg.Registry.Check(m); err != nil {
		return modelError(ctx, err)
	}
	spellings := []job.Model{m}
	switch m.Version {
	case "":
		spellings = append(spellings, job.Model{Name: m.Name, Version: latest})
	case latest:
		spellings = append(spellings, job.Model{Name: m.Name})
	}
	for _, s := range spellings {
		if err := needed(s); err != nil {
			return err
		}
	}
	// Any store will do: containerd removes the image's snapshots from every
	// snapshotter.
	store, err := d.host.store(ctx, storeKey{d.snapshottersOf(nil)[0], image.Always})
	if err == nil {
		err = store.Remove(ctx, m)
	}
	if err != nil {
		return modelError(ctx, err)
	}
	return nil
}

// snapshottersOf returns the snapshotters of the named sheep, each once and sorted;
// those of all sheep where no name is given, and the default one where there are no
// sheep.
func (d *Driver) snapshottersOf(sheep []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []string
	for name, snapshotter := range d.snapshotters {
		if (len(sheep) == 0 || slices.Contains(sheep, name)) && !slices.Contains(found, snapshotter) {
			found = append(found, snapshotter)
		}
	}
	if len(found) == 0 {
		return []string{d.cfg.Snapshotter}
	}
	slices.Sort(found)
	return found
}

// modelError turns an error of package image into one of those that
// runtime.ModelKeeper promises.
func modelError(ctx context.Context, err error) error {
	var invalid *job.Invalid
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &invalid):
		return invalid
	}
	class := classOf(err)
	if class == errdefs.ErrUnknown {
		class = errdefs.ErrInternal
	}
	return &job.ModelError{Problem: errtext.Of(err), Class: class}
}
