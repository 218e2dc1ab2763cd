package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	containerdlog "github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/iterait/shepherd/job"
)

// Info describes an image in a list.
type Info struct {
	Reference string
	// Model is the image's name and version in this registry; zero for images of
	// other registries.
	Model    job.Model
	Digest   digest.Digest
	LastUsed time.Time
	// Size is the disk usage in bytes of the image's layers and unpacked files,
	// including those shared with other images.
	Size int64
	// Own is the part of Size that is not shared with other images.
	Own int64
	// Pulled is true if shepherd pulled the image, and may thus remove it to keep to
	// the budget.
	Pulled bool
	// InUse is true if a container was created from the image.
	InUse bool
}

// part is a blob or a snapshot of an image.
type part struct {
	snapshot bool
	name     string
}

// inventory lists all images and their parts.
type inventory struct {
	images []Info
	parts  map[string]map[part]int64 // sizes in bytes, by reference and part
}

// List lists the images in the namespace, sorted by reference.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	ctx = containerdlog.WithLogger(ctx, s.quiet)
	inv, err := s.inventory(ctx)
	if err != nil {
		return nil, s.explainAs("list images", err)
	}
	return inv.images, nil
}

// Usage returns the disk usage in bytes of all images in the namespace: layers and
// unpacked files, with shared parts counted once.
func (s *Store) Usage(ctx context.Context) (int64, error) {
	ctx = containerdlog.WithLogger(ctx, s.quiet)
	inv, err := s.inventory(ctx)
	if err != nil {
		return 0, s.explainAs("measure the disk usage of images", err)
	}
	return inv.total(), nil
}

// explainAs turns an error into a failure whose message begins with the operation.
func (s *remote) explainAs(operation string, err error) error {
	var known *failure
	if errors.As(err, &known) {
		return err
	}
	f := s.explanation(err)
	return failf(f.class, "%s: %s", operation, f.message)
}

func (s *disk) inventory(ctx context.Context) (*inventory, error) {
	all, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	inUse, err := s.inUse(ctx)
	if err != nil {
		return nil, err
	}
	inv := &inventory{parts: map[string]map[part]int64{}}
	for _, img := range all {
		inv.parts[img.Name] = s.parts(ctx, img.Target)
		inv.images = append(inv.images, Info{
			Reference: img.Name, Model: s.model(img.Name), Digest: img.Target.Digest, LastUsed: lastUsed(img),
			Pulled: img.Labels[labelPulled] != "", InUse: inUse[img.Name] != "",
		})
	}
	holders := map[part]int{}
	for _, parts := range inv.parts {
		for p := range parts {
			holders[p]++
		}
	}
	for i := range inv.images {
		for p, size := range inv.parts[inv.images[i].Reference] {
			inv.images[i].Size += size
			if holders[p] == 1 {
				inv.images[i].Own += size
			}
		}
	}
	slices.SortFunc(inv.images, func(a, b Info) int { return strings.Compare(a.Reference, b.Reference) })
	return inv, nil
}

// inUse returns a container of each image, by reference, from which one was created.
func (s *disk) inUse(ctx context.Context) (map[string]string, error) {
	all, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	of := make(map[string]string, len(all))
	for _, c := range all {
		of[c.Image] = c.ID
	}
	return of, nil
}

// lastUsed returns when an image was used last.
func lastUsed(img images.Image) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, img.Labels[labelLastUsed]); err == nil {
		return t
	}
	return img.UpdatedAt
}

// total returns the size of all parts in bytes, shared ones counted once.
func (inv *inventory) total() (n int64) {
	seen := map[part]bool{}
	for _, parts := range inv.parts {
		for p, size := range parts {
			if !seen[p] {
				seen[p] = true
				n += size
			}
		}
	}
	return n
}

// remove removes an image from the inventory and returns how many bytes that frees.
func (inv *inventory) remove(reference string) int64 {
	before := inv.total()
	delete(inv.parts, reference)
	return before - inv.total()
}

// parts returns the parts of an image that exist locally, with their sizes in bytes.
func (s *disk) parts(ctx context.Context, target ocispec.Descriptor) map[part]int64 {
	store := s.client.ContentStore()
	snapshotter := s.client.SnapshotService(s.snapshotter)
	found := map[part]int64{}
	var walk images.HandlerFunc = func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := store.Info(ctx, desc.Digest)
		if err != nil {
			return nil, nil
		}
		found[part{name: desc.Digest.String()}] = info.Size
		if images.IsLayerType(desc.MediaType) || info.Size > maxDocument {
			return nil, nil
		}
		if images.IsConfigType(desc.MediaType) {
			var config ocispec.Image
			data, err := content.ReadBlob(ctx, store, desc)
			if err != nil || json.Unmarshal(data, &config) != nil {
				return nil, nil
			}
			for _, chain := range identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs)) {
				if usage, err := snapshotter.Usage(ctx, chain.String()); err == nil {
					found[part{snapshot: true, name: chain.String()}] = usage.Size
				}
			}
		}
		children, err := images.Children(ctx, store, desc)
		if err != nil {
			return nil, nil
		}
		return children, nil
	}
	_ = images.Walk(ctx, walk, target) // walk never returns an error
	return found
}

// model returns the model of a reference in this registry, zero for another registry.
func (s *disk) model(reference string) job.Model {
	rest, ok := strings.CutPrefix(reference, s.endpoint.Prefix())
	if !ok {
		return job.Model{}
	}
	if name, version, ok := strings.Cut(rest, "@"); ok && !strings.Contains(name, ":") {
		return job.Model{Name: name, Version: version}
	}
	name, version, _ := strings.Cut(rest, ":")
	return job.Model{Name: name, Version: version}
}

// Remove removes the image of m and waits until containerd has freed its space. The
// error is of class ErrNotFound if there is no such image, and ErrFailedPrecondition if
// a container was created from it or it is being pulled.
func (s *Store) Remove(ctx context.Context, m job.Model) error {
	r, err := referenceOf(s.remote.endpoint, m)
	if err != nil {
		return failf(errdefs.ErrInvalidArgument, "%v", err)
	}
	ctx = containerdlog.WithLogger(ctx, s.quiet)
	operation := "remove image " + r.String()
	release, ok := s.flights.hold(r.String())
	if !ok {
		return failf(errdefs.ErrFailedPrecondition, "%s: it is being pulled or removed", operation)
	}
	defer release()
	inUse, err := s.inUse(ctx)
	if err != nil {
		return s.explainAs(operation, err)
	}
	if id := inUse[r.String()]; id != "" {
		return failf(errdefs.ErrFailedPrecondition, "%s: container %s was created from it; stop its sheep first", operation, id)
	}
	err = s.client.ImageService().Delete(ctx, r.String(), images.SynchronousDelete())
	if errdefs.IsNotFound(err) {
		return failf(errdefs.ErrNotFound, "%s: it is not on this machine", operation)
	}
	if err != nil {
		return s.explainAs(operation, err)
	}
	return nil
}

// trimAfter trims the images to the budget after the pull of r.
func (s *Store) trimAfter(r ref) {
	if s.budget.limit <= 0 {
		return
	}
	ctx, cancel := context.WithCancel(containerdlog.WithLogger(context.Background(), s.quiet))
	defer cancel()
	s.work.Go(func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	})
	if _, err := s.budget.trim(ctx, s.budget.limit, r.String()); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "images cannot be removed to keep to the budget", "error", err)
	}
}

// budget removes images to keep their disk usage within a limit.
type budget struct {
	*disk
	limit   int64 // bytes; 0 is no limit
	needed  func(context.Context) ([]job.Model, error)
	flights *flights // by reference

	trimming sync.Mutex // held during trim
}

// removable returns the images that may be removed to keep to the budget: those that
// shepherd pulled, except the ones needed, in use or being pulled, and keep.
func (s *budget) removable(ctx context.Context, inv *inventory, keep string) ([]Info, error) {
	kept, err := s.neededNow(ctx)
	if err != nil {
		return nil, err
	}
	maps.Copy(kept, s.flights.keys())
	kept[keep] = true
	return slices.DeleteFunc(slices.Clone(inv.images), func(i Info) bool { return !i.Pulled || i.InUse || kept[i.Reference] }), nil
}

// neededNow returns the references of the models that are needed.
func (s *budget) neededNow(ctx context.Context) (map[string]bool, error) {
	references := map[string]bool{}
	if s.needed == nil {
		return references, nil
	}
	needed, err := s.needed(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the models that are needed: %w", err)
	}
	for _, m := range needed {
		if r, err := referenceOf(s.endpoint, m); err == nil {
			references[r.String()] = true
		}
	}
	return references, nil
}

// Full reports whether the images that may not be removed take the whole budget, so
// that there is no space to prefetch another one.
func (s *Store) Full(ctx context.Context) (bool, error) {
	if s.budget.limit <= 0 {
		return false, nil
	}
	ctx = containerdlog.WithLogger(ctx, s.quiet)
	inv, err := s.inventory(ctx)
	if err != nil {
		return false, s.explainAs("measure the disk usage of images", err)
	}
	removable, err := s.budget.removable(ctx, inv, "")
	if err != nil {
		return false, err
	}
	for _, i := range removable {
		inv.remove(i.Reference)
	}
	return inv.total() >= s.budget.limit, nil
}

// trim removes removable images, least recently used first, until all images take at
// most budget bytes, and returns how many bytes it freed.
func (s *budget) trim(ctx context.Context, budget int64, keep string) (freed int64, err error) {
	s.trimming.Lock()
	defer s.trimming.Unlock()
	inv, err := s.inventory(ctx)
	if err != nil {
		return 0, fmt.Errorf("list images: %w", err)
	}
	over := inv.total() - budget
	if over <= 0 {
		return 0, nil
	}
	candidates, err := s.removable(ctx, inv, keep)
	if err != nil {
		return 0, err
	}
	slices.SortFunc(candidates, func(a, b Info) int { return a.LastUsed.Compare(b.LastUsed) })
	for _, c := range candidates {
		if freed >= over {
			break
		}
		removed, err := s.removeUnused(ctx, c)
		if err != nil {
			return freed, fmt.Errorf("remove image %s: %w", c.Reference, err)
		}
		if !removed {
			continue
		}
		n := inv.remove(c.Reference)
		freed += n
		s.log.InfoContext(ctx, "image removed to keep to the budget", "image", c.Reference, "last_used", c.LastUsed, "freed", n)
	}
	if freed < over && budget > 0 {
		s.log.WarnContext(ctx, "images exceed the budget and none of them may be removed", "budget", budget, "over", over-freed)
	}
	return freed, nil
}

// removeUnused removes an image, unless it was used since it was listed, or is needed or
// in use by now: the removals before it took their time.
func (s *budget) removeUnused(ctx context.Context, listed Info) (removed bool, err error) {
	release, ok := s.flights.hold(listed.Reference) // nobody is given the image meanwhile
	if !ok {
		return false, nil
	}
	defer release()
	needed, err := s.neededNow(ctx)
	if err != nil {
		return false, err
	}
	inUse, err := s.inUse(ctx)
	if err != nil {
		return false, err
	}
	img, err := s.client.ImageService().Get(ctx, listed.Reference)
	if err == nil && (needed[listed.Reference] || inUse[listed.Reference] != "" || !lastUsed(img).Equal(listed.LastUsed)) {
		return false, nil
	}
	if err == nil {
		err = s.client.ImageService().Delete(ctx, listed.Reference, images.SynchronousDelete())
	}
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
