package api

import (
	"context"
	"fmt"
	"mime"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// UploadService has clients put inputs into storage by themselves. A tenant that is empty is
// any.
type UploadService interface {
	// BeginUpload reserves the place of a job that is not submitted yet, and says where its
	// inputs go. It returns *job.Invalid, *job.NoUploads, job.ErrSubmitted, job.ErrRemoving,
	// job.ErrUploading, *job.QueueFull and job.ErrDraining.
	BeginUpload(ctx context.Context, r job.UploadRequest) (job.UploadPlan, error)

	// UploadAddresses says what is missing, and where it goes. It returns job.ErrNoUpload,
	// job.ErrUploadOver and *job.NoUploads.
	UploadAddresses(ctx context.Context, id job.ID, tenant string, to job.UploadAddressing) (job.UploadPlan, error)

	// CompleteUpload sees that all files are there. It returns job.ErrNoUpload,
	// job.ErrUploadOver and *job.UploadIncomplete.
	CompleteUpload(ctx context.Context, id job.ID, tenant string) (job.UploadPlan, error)

	// GiveUpUpload removes an upload. It returns job.ErrNoUpload, job.ErrUploading, and
	// job.ErrRemovalContinues where that takes long; after another error, too, the removal
	// may go on by itself.
	GiveUpUpload(ctx context.Context, id job.ID, tenant string) error

	// UploadOrigin is the origin of the addresses that UploadAddresses makes for a host, empty
	// where it makes none.
	UploadOrigin(host string) string
}

// uploadServer serves uploads: inputs that clients put into storage by themselves.
type uploadServer struct {
	answers
	bodyLimits
	service UploadService
}

// usualValid is how long addresses are valid where a client does not say.
const usualValid = time.Hour

// CreateUpload answers POST /uploads.
func (s *uploadServer) CreateUpload(w http.ResponseWriter, r *http.Request) {
	caller := access.From(r.Context())
	request := job.UploadRequest{Tenant: caller.Tenant, UploadAddressing: job.UploadAddressing{Valid: usualValid, Host: hostOf(r)}}
	var id text
	err := s.readUpload(w, r, func(in *reader, field string) error {
		switch field {
		case "job_id":
			return id.optional(in, field)
		case "files":
			return in.list(field, func(name string) error {
				file, err := in.uploadFile(name, len(request.Files))
				request.Files = append(request.Files, file)
				return err
			})
		case "expires_in":
			return in.addressesValid(field, &request.Valid)
		}
		return unknown(field)
	})
	if err == nil && id.value != nil {
		request.ID, err = job.ParseID(string(id.value))
		if err != nil {
			err = &job.Invalid{Field: "job_id", Problem: err.Error()}
		}
	}
	if err == nil && id.value == nil {
		request.ID = newJobID(caller, "")
	}
	var plan job.UploadPlan
	if err == nil {
		plan, err = s.service.BeginUpload(r.Context(), request)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Location", "/uploads/"+string(plan.ID))
	s.answer(w, r, http.StatusCreated, shownUpload(plan))
}

// RenewUpload answers POST /uploads/{job_id}/addresses.
func (s *uploadServer) RenewUpload(w http.ResponseWriter, r *http.Request, rawID string) {
	to := job.UploadAddressing{Valid: usualValid, Host: hostOf(r)}
	id, err := uploadID(rawID)
	if err == nil && r.ContentLength != 0 {
		err = s.readUpload(w, r, func(in *reader, field string) error {
			if field == "expires_in" {
				return in.addressesValid(field, &to.Valid)
			}
			return unknown(field)
		})
	}
	var plan job.UploadPlan
	if err == nil {
		plan, err = s.service.UploadAddresses(r.Context(), id, access.From(r.Context()).Tenant, to)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, shownUpload(plan))
}

// CompleteUpload answers POST /uploads/{job_id}/complete.
func (s *uploadServer) CompleteUpload(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := uploadID(rawID)
	var plan job.UploadPlan
	if err == nil {
		plan, err = s.service.CompleteUpload(r.Context(), id, access.From(r.Context()).Tenant)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, shownUpload(plan))
}

// RemoveUpload answers DELETE /uploads/{job_id}.
func (s *uploadServer) RemoveUpload(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := uploadID(rawID)
	if err == nil {
		err = s.service.GiveUpUpload(r.Context(), id, access.From(r.Context()).Tenant)
	}
	s.answerRemoval(w, r, err)
}

// uploadID decodes the id in a path.
func uploadID(raw string) (job.ID, error) {
	name, ok := fileName(raw)
	if !ok {
		return "", job.ErrNoUpload
	}
	id, err := job.ParseID(name)
	if err != nil {
		return "", job.ErrNoUpload
	}
	return id, nil
}

// readUpload reads a body that is a JSON object, member by member.
func (s *uploadServer) readUpload(w http.ResponseWriter, r *http.Request, member func(in *reader, field string) error) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind != "application/json" && kind != "application/x-www-form-urlencoded" || err != nil && r.Header.Get("Content-Type") != "" {
		return errMediaType
	}
	room := &lease{of: s.bodies}
	defer room.giveBack()
	body, err := readBody(w, r, s.maxBody, room)
	if err != nil {
		return err
	}
	in := &reader{data: body}
	return in.document(func() error {
		return in.object("", func(field string) error { return member(in, field) })
	})
}

// uploadFile reads one file of an upload, before which there are so many.
func (r *reader) uploadFile(path string, before int) (f job.UploadFile, err error) {
	if before == job.MaxInputs {
		return f, &job.Invalid{Field: "files", Problem: fmt.Sprintf("there are more than %d", job.MaxInputs)}
	}
	var name text
	sized := false
	err = r.object(path, func(field string) error {
		switch field {
		case path + ".path":
			return name.required(r, field)
		case path + ".size":
			sized = true
			f.Size, err = r.size(field)
			return err
		}
		return unknown(field)
	})
	switch {
	case err != nil:
	case !name.seen:
		err = missing(path + ".path")
	case !sized:
		err = missing(path + ".size")
	}
	f.Path = string(name.value)
	return f, err
}

// size reads a number of bytes.
func (r *reader) size(field string) (int64, error) {
	if c := r.peek(); c != '-' && !digit(c) {
		return 0, r.expect(field, "a number of bytes", '0')
	}
	number, err := r.number()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return 0, &job.Invalid{Field: field, Problem: "must be a whole number of bytes"}
	}
	return n, nil
}

// addressesValid reads how long addresses are to be valid, or null.
func (r *reader) addressesValid(field string, into *time.Duration) error {
	return r.optional(func() error {
		valid, err := r.duration(field)
		if err == nil && (valid < time.Second || valid > maxPresign) {
			err = &job.Invalid{Field: field, Problem: "must be a number of seconds such as 900, or a duration such as 2h, from a second to 168h"}
		}
		*into = valid
		return err
	})
}

// hostOf is the name by which a client has reached the daemon; empty for one of the same
// machine that came by the socket.
func hostOf(r *http.Request) string {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == access.SocketHost {
		if _, socket := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); socket {
			return ""
		}
	}
	return host
}

// shownUpload is a plan for clients.
func shownUpload(p job.UploadPlan) Upload {
	shown := Upload{JobId: string(p.ID), CreatedAt: job.FormatTime(p.Created), ExpiresAt: job.FormatTime(p.Expires), AddressesExpireAt: job.FormatTime(p.AddressesExpire), Files: make([]UploadedFile, len(p.Files))}
	for i, f := range p.Files {
		to := p.Targets[i]
		shown.Files[i] = UploadedFile{Path: f.Path, Size: f.Size, Stored: to.Stored, Address: orNull(to.Address)}
		if to.Parts == nil {
			continue
		}
		parts := make([]UploadPart, len(to.Parts))
		for n, part := range to.Parts {
			parts[n] = UploadPart{Number: part.Number, Offset: part.Offset, Size: part.Size, Address: part.Address}
		}
		shown.Files[i].Parts = &parts
	}
	return shown
}
