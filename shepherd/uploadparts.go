package shepherd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// divide decides which files are sent in parts, and the size of the parts.
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

// beginParts begins the multipart uploads that have not begun yet. Other clients or nodes
// may do the same concurrently: all use the multipart uploads that the ledger keeps.
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
	kept, err := up.cfg.Uploads.Ledger.KeepUpload(ctx, u, u.Files, 0)
	if errors.Is(err, ledger.ErrNotFound) || errors.Is(err, ledger.ErrUploadOver) {
		up.dropParts(ctx, u, nil) // given up meanwhile
	}
	if err != nil {
		return u, up.failed(u.ID, err)
	}
	up.dropParts(ctx, u, kept.Files)
	return kept, nil
}

// dropParts ends the uploads of an upload's parts, but for those that files have.
func (up *uploads) dropParts(ctx context.Context, u job.Upload, files []job.UploadFile) {
	store, _ := up.cfg.Store.(storage.Parts)
	for _, f := range u.Files {
		if f.Parts == "" || slices.ContainsFunc(files, func(kept job.UploadFile) bool { return kept.Parts == f.Parts }) {
			continue
		}
		if err := store.DropParts(ctx, u.ID, path.Join(job.InputDir, f.Path), f.Parts); err != nil {
			up.log.Debug("Cannot drop an unused multipart upload; it stays until the inputs are removed", "job", u.ID, "file", f.Path, "error", err)
		}
	}
}

// partOf returns part n of a file.
func partOf(f job.UploadFile, n int) job.UploadPart {
	offset := int64(n-1) * f.PartSize
	return job.UploadPart{Number: n, Offset: offset, Size: min(f.PartSize, f.Size-offset)}
}

// storedInputs is the part of an upload that is in storage.
type storedInputs struct {
	sizes map[string]int64                // sizes of complete files by path
	parts map[string]map[int]storage.Part // parts of incomplete files by path and number
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

// stored returns what is in storage of an upload.
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
				return serviceError("storage", err)
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

// missing returns *job.UploadIncomplete if the file, or one of its parts, is missing.
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

// join joins the parts of a file.
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
		return serviceError("storage", fmt.Errorf("join the parts of input %s of job %s: %w", f.Path, id, err))
	}
	// Another request has joined them, or this one has and the answer was lost.
	name := path.Join(job.InputDir, f.Path)
	for there, err := range up.cfg.Store.List(ctx, id, name) {
		if errdefs.IsNotFound(err) { // the job has no files
			break
		}
		if err != nil {
			return serviceError("storage", fmt.Errorf("list %s of job %s: %w", name, id, err))
		}
		if there.Name == name && there.Size == f.Size {
			return nil
		}
	}
	return &job.UploadIncomplete{Path: f.Path, Problem: "is missing"}
}
