package job

import (
	"slices"
	"time"
)

// Upload is a reserved place in storage for a job that is not submitted yet. Clients put the
// job's inputs there directly.
type Upload struct {
	ID     ID // of the job
	Tenant string
	// Created is when the place was reserved. Expires is when it is removed, unless the job
	// is submitted or new addresses are requested before.
	Created, Expires time.Time
	Files            []UploadFile
	// Removing is set if the upload has expired or was given up and is being removed.
	Removing bool
}

// PartsBegun reports whether a multipart upload has begun for a file.
func (u Upload) PartsBegun() bool {
	return slices.ContainsFunc(u.Files, func(f UploadFile) bool { return f.Parts != "" })
}

// UploadFile is one file of an Upload.
type UploadFile struct {
	Path string `json:"path"` // below inputs/
	Size int64  `json:"size"` // bytes
	// PartSize is the size of each part but the last, of a file that is sent in parts; 0
	// for a file sent in one request. Parts is the storage's id of the multipart upload.
	PartSize int64  `json:"part_size,omitempty"`
	Parts    string `json:"parts,omitempty"`
}

// Count returns the number of parts, 0 for a file sent in one request.
func (f UploadFile) Count() int {
	if f.PartSize == 0 {
		return 0
	}
	return int((f.Size + f.PartSize - 1) / f.PartSize)
}

// UploadRequest is a request to reserve a place for a job's inputs.
type UploadRequest struct {
	ID     ID
	Tenant string
	Files  []UploadFile // only Path and Size are used
	UploadAddressing
}

// UploadAddressing are the parameters of upload URLs.
type UploadAddressing struct {
	// Valid is how long the URLs are valid.
	Valid time.Duration
	// Host is the host name by which the client reached the daemon, without a port; empty
	// for a client on the same machine.
	Host string
}

// UploadPlan is what is left to be sent of an Upload.
type UploadPlan struct {
	Upload
	// AddressesExpire is when the URLs expire; zero if there are none.
	AddressesExpire time.Time
	// Targets are in the order of Files.
	Targets []UploadTarget
}

// UploadTarget is where to send a file: one URL, or one for each missing part.
type UploadTarget struct {
	Stored  bool // the file is in storage
	Address string
	Parts   []UploadPart
}

// UploadPart is a missing part of a file.
type UploadPart struct {
	Number       int // from 1
	Offset, Size int64
	Address      string
}
