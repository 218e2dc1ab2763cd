package job

import "time"

// Upload is a place in storage that is reserved for a job which is not submitted yet:
// clients put its inputs there by themselves.
type Upload struct {
	ID     ID // of the job
	Tenant string
	// Created is when it was reserved, and Expires when it is given up unless its job is
	// submitted, or it is asked for again, before.
	Created, Expires time.Time
	Files            []UploadFile
	// Removing says that its time was over, or that it was given up: what was uploaded is
	// being removed.
	Removing bool
}

// UploadFile is one file of an Upload.
type UploadFile struct {
	Path string `json:"path"` // below inputs/
	Size int64  `json:"size"` // bytes
	// PartSize is what each part but the last has, of a file that is sent in parts; 0 for
	// one that is sent whole. Parts is then what storage calls the upload of the parts.
	PartSize int64  `json:"part_size,omitempty"`
	Parts    string `json:"parts,omitempty"`
}

// Count is how many parts the file has, 0 where it is sent whole.
func (f UploadFile) Count() int {
	if f.PartSize == 0 {
		return 0
	}
	return int((f.Size + f.PartSize - 1) / f.PartSize)
}
