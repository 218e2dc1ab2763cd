package shepherd

import (
	"context"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// divide says which files are sent in parts, and of what size.
func divide(files []job.UploadFile, total int64, inParts bool) ([]job.UploadFile, error) {
	const mib = 1 << 20
	size := min(max(smallestPart, (total/mostParts+mib-1)/mib*mib), storage.MaxPut)
	divided := make([]job.UploadFile, len(files))
	for i, f := range files {
		divided[i] = job.UploadFile{Path: f.Path, Size: f.Size}
		switch {
		case inParts && f.Size > max(wholeFile, size):
			divided[i].PartSize = size
		case f.Size > storage.MaxPut:
			return nil, &job.Invalid{Field: "files", Problem: fmt.Sprintf("%q is larger than %d bytes, the most that this storage takes by one request", f.Path, int64(storage.MaxPut))}
		}
	}
	return divided, nil
}

// beginParts begins the uploads of those files that are sent in parts, where that has not
// been done. Another client, or node, may do so at the same time: all use those that the
// ledger keeps.
func (up *uploads) beginParts(ctx context.Context, u job.Upload) (job.Upload, error) {
	store, _ := up.cfg.Store.(storage.Parts)
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(partsOpen)
	begun := false
	for i := range u.Files {
		f := &u.Files[i]
		if f.PartSize == 0 || f.Parts != "" {
			continue
		}
		begun = true
		group.Go(func() (err error) {
			if f.Parts, err = store.BeginParts(within, u.ID, path.Join(job.InputDir, f.Path)); err != nil {
				return inputError(u.ID, f.Path, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || !begun {
		return u, err
	}
	kept, err := up.cfg.Uploads.Ledger.KeepUpload(ctx, u.ID, u.Files, 0)
	if err != nil {
		return u, up.failed(u.ID, err)
	}
	for i, f := range u.Files {
		if f.Parts == "" || f.Parts == kept.Files[i].Parts {
			continue
		}
		if err := store.DropParts(ctx, u.ID, path.Join(job.InputDir, f.Path), f.Parts); err != nil {
			up.log.Debug("An upload that nobody uses stays until the inputs are removed", "job", u.ID, "file", f.Path, "error", err)
		}
	}
	return kept, nil
}

// partOf is the part of a file with a number.
func partOf(f job.UploadFile, n int) job.UploadPart {
	offset := int64(n-1) * f.PartSize
	return job.UploadPart{Number: n, Offset: offset, Size: min(f.PartSize, f.Size-offset)}
}

// storedInputs is what is in storage of an upload.
type storedInputs struct {
	sizes map[string]int64                // of files, by their path
	parts map[string]map[int]storage.Part // of files that are not joined, by path and number
}

func (i *storedInputs) has(f job.UploadFile) bool {
	if i == nil {
		return false
	}
	size, ok := i.sizes[f.Path]
	return ok && size == f.Size
}

func (i *storedInputs) hasPart(f job.UploadFile, part job.UploadPart) bool {
	if i == nil {
		return false
	}
	stored, ok := i.parts[f.Path][part.Number]
	return ok && stored.Size == part.Size
}

// stored looks what is there of an upload.
func (up *uploads) stored(ctx context.Context, u job.Upload) (*storedInputs, error) {
	found := &storedInputs{sizes: map[string]int64{}, parts: map[string]map[int]storage.Part{}}
	for f, err := range up.reader.list(ctx, u.ID, job.InputDir+"/") {
		if err != nil {
			return nil, err
		}
		found.sizes[f.Name] = f.Size
	}
	store, _ := up.cfg.Store.(storage.Parts)
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(partsOpen)
	lists := make([][]storage.Part, len(u.Files))
	for i, f := range u.Files {
		if f.Parts == "" || found.has(f) {
			continue
		}
		group.Go(func() error {
			parts, err := store.StoredParts(within, u.ID, path.Join(job.InputDir, f.Path), f.Parts)
			if err != nil && !errdefs.IsNotFound(err) {
				return away("storage", err)
			}
			lists[i] = parts
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, parts := range lists {
		byNumber := make(map[int]storage.Part, len(parts))
		for _, p := range parts {
			byNumber[p.Number] = p
		}
		found.parts[u.Files[i].Path] = byNumber
	}
	return found, nil
}

// missing is an *job.UploadIncomplete where the file, or one of its parts, is not there.
func (i *storedInputs) missing(f job.UploadFile) error {
	size, there := i.sizes[f.Path]
	switch {
	case i.has(f):
		return nil
	case there:
		return &job.UploadIncomplete{Path: f.Path, Problem: fmt.Sprintf("has %d bytes in storage instead of %d", size, f.Size)}
	case f.PartSize == 0:
		return &job.UploadIncomplete{Path: f.Path, Problem: "is missing"}
	}
	lacks := 0
	for n := 1; n <= f.Count(); n++ {
		if !i.hasPart(f, partOf(f, n)) {
			lacks++
		}
	}
	if lacks > 0 {
		return &job.UploadIncomplete{Path: f.Path, Problem: fmt.Sprintf("lacks %d of its %d parts", lacks, f.Count())}
	}
	return nil
}

// join makes a file of its parts.
func (up *uploads) join(ctx context.Context, id job.ID, f job.UploadFile, stored map[int]storage.Part) error {
	parts := make([]storage.Part, f.Count())
	for n := range parts {
		parts[n] = stored[n+1]
	}
	err := up.cfg.Store.(storage.Parts).JoinParts(ctx, id, path.Join(job.InputDir, f.Path), f.Parts, parts)
	switch {
	case err == nil:
		return nil
	case errdefs.IsInvalidArgument(err):
		return &job.UploadIncomplete{Path: f.Path, Problem: "is still being sent: a part was replaced meanwhile"}
	case !errdefs.IsNotFound(err):
		return away("storage", fmt.Errorf("join the parts of input %s of job %s: %w", f.Path, id, err))
	}
	// Another request has joined them, or this one did and the answer was lost.
	name := path.Join(job.InputDir, f.Path)
	for there, err := range up.cfg.Store.List(ctx, id, name) {
		if errdefs.IsNotFound(err) { // the job has no files
			break
		}
		if err != nil {
			return away("storage", fmt.Errorf("list %s of job %s: %w", name, id, err))
		}
		if there.Name == name && there.Size == f.Size {
			return nil
		}
	}
	return &job.UploadIncomplete{Path: f.Path, Problem: "is missing"}
}
