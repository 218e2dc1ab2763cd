package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/iterait/shepherd/client"
)

// straightAbove is how large inputs are that go straight to storage, in bytes: what is
// smaller is not worth the further requests.
const straightAbove = 64 << 20

// giveUpTime bounds how long an upload that came to nothing is given up.
const giveUpTime = 5 * time.Second

// straight reports whether the inputs may go to storage before the job is submitted. With a
// key of the user's the job must have the id that the daemon makes of it, and files of other
// jobs come with the submission.
func (s *submission) straight() bool {
	return s.inputs.size > straightAbove && !s.repeats && s.request.Inputs == nil
}

// upload puts the inputs into storage and has the request name their place. It returns false
// where the daemon takes none that way, or its storage cannot be reached from here.
func (s *submission) upload(ctx context.Context, on *session, shown *display) (bool, error) {
	upload, err := s.beginUpload(ctx, on)
	if err != nil || upload == nil {
		return false, err
	}
	paths := make(map[string]string, len(s.inputs.files))
	for _, f := range s.inputs.files {
		paths[f.name] = f.path
	}
	count := shown.transfer(stageUpload, s.inputs.size)
	sender := client.Uploader{
		API:  on.ClientWithResponses,
		Open: func(name string) (client.UploadSource, error) { return os.Open(paths[name]) },
		Sent: count.add,
	}
	count.add(int(storedBytes(*upload)))
	if err = sender.Send(ctx, *upload); err == nil {
		s.request.JobId = &upload.JobId
		return true, nil
	}
	if s.request.JobId == nil || errors.Is(err, client.ErrStorage) { // or the same command goes on with it
		giveUp, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
		defer cancel()
		_, _ = on.RemoveUploadWithResponse(giveUp, upload.JobId) // it expires anyway
	}
	if errors.Is(err, client.ErrStorage) && ctx.Err() == nil {
		shown.interrupted()
		fmt.Fprintf(on.err, "The inputs go through the daemon: %s\n", clean(err.Error()))
		return false, nil
	}
	return false, err
}

// beginUpload reserves a place for the inputs, or finds the one that was reserved by an
// earlier try with the same id; nil where the daemon takes no uploads.
func (s *submission) beginUpload(ctx context.Context, on *session) (*client.Upload, error) {
	request := client.UploadRequest{JobId: s.request.JobId}
	for _, f := range s.inputs.files {
		request.Files = append(request.Files, client.UploadFile{Path: f.name, Size: f.size})
	}
	made, err := on.CreateUploadWithResponse(ctx, request)
	if err == nil {
		return made.JSON201, nil
	}
	var answer *client.StatusError
	if !errors.As(err, &answer) {
		return nil, err
	}
	is := func(problem string) bool {
		return answer.Problem != nil && strings.HasSuffix(answer.Problem.Type, ":"+problem)
	}
	switch {
	case is("no-uploads"), answer.Status == 404, answer.Status == 405: // an earlier daemon's, too
		return nil, nil
	case is("id-in-use") && s.request.JobId != nil:
		found, findErr := on.RenewUploadWithResponse(ctx, *s.request.JobId, client.UploadRenewal{})
		if findErr == nil && found.JSON200 != nil && sameFiles(*found.JSON200, request.Files) {
			return found.JSON200, nil
		}
	}
	return nil, err
}

// sameFiles reports whether an upload is of these files.
func sameFiles(upload client.Upload, files []client.UploadFile) bool {
	if len(upload.Files) != len(files) {
		return false
	}
	for i, f := range upload.Files {
		if f.Path != files[i].Path || f.Size != files[i].Size {
			return false
		}
	}
	return true
}

// storedBytes is what is in storage of an upload already.
func storedBytes(upload client.Upload) int64 {
	stored := int64(0)
	for _, f := range upload.Files {
		if f.Address != nil {
			continue
		}
		stored += f.Size
		if f.Parts == nil {
			continue
		}
		for _, p := range *f.Parts {
			stored -= p.Size
		}
	}
	return stored
}
