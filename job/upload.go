package job

import (
	"slices"
	"time"
)

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

// PartsBegun reports whether storage has begun to take the parts of a file.
func (u Upload) PartsBegun() bool {
	return slices.ContainsFunc(u.Files, func(f UploadFile) bool { return f.Parts != "" })
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

// UploadRequest asks for a place for a job's inputs.
type UploadRequest struct {
	ID     ID
	Tenant string
	Files  []UploadFile // of which Path and Size count
	UploadAddressing
}

// UploadAddressing is what addresses are to be like.
type UploadAddressing struct {
	// Valid is for how long.
	Valid time.Duration
	// Host is the name by which the client has reached the daemon, without a port; empty for
	// one on the same machine.
	Host string
}

// UploadPlan is what is left to be done for an Upload.
type UploadPlan struct {
	Upload
	// AddressesExpire is until when addresses are valid; zero where there are none.
	AddressesExpire time.Time
	// Targets are in the order of Files.
	Targets []UploadTarget
}

// UploadTarget is where a file goes: one address, or one for each part that is missing.
type UploadTarget struct {
	Stored  bool // nothing is left to be done
	Address string
	Parts   []UploadPart
}

// UploadPart is a part of a file that is to be sent.
type UploadPart struct {
	Number       int // from 1
	Offset, Size int64
	Address      string
}
