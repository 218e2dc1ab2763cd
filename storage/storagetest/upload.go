package storagetest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

// testUpload has clients put files into a place that is reserved, by addresses alone.
func (s *suite) testUpload(t *testing.T) {
	if s.Signer == nil {
		t.Log("this Store has no server that clients could reach") // nothing is promised then
		return
	}
	t.Run("Whole", func(t *testing.T) { t.Parallel(); s.testWholeUpload(t) })
	t.Run("Parts", func(t *testing.T) { t.Parallel(); s.testParts(t) })
	t.Run("Dropped", func(t *testing.T) { t.Parallel(); s.testDroppedParts(t) })
}

// put puts the body to an address, by a connection of its own, and returns the answer's
// status: a server that has refused a body may close the connection without saying so, and
// the next PUT by it would fail.
func put(t *testing.T, address string, body []byte) (int, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address, bytes.NewReader(body))
	noError(t, err)
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}

// send is put that succeeds in sending.
func send(t *testing.T, address string, body []byte) int {
	t.Helper()
	status, err := put(t, address, body)
	noError(t, err)
	return status
}

// refused checks that the server does not take the body. It may close the connection
// before it has read all of it.
func refused(t *testing.T, what, address string, body []byte) {
	t.Helper()
	status, err := put(t, address, body)
	if broken := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE); !broken && (err != nil || status < 400 || status >= 500) {
		t.Errorf("%s: %d, %v", what, status, err)
	}
}

func (s *suite) reserved(t *testing.T) job.ID {
	t.Helper()
	id := s.id()
	noError(t, s.store.Reserve(t.Context(), id, job.Status{State: job.Queued, Accepted: true}))
	return id
}

func (s *suite) testWholeUpload(t *testing.T) {
	id := s.reserved(t)
	const name, content = "inputs/a b/ü?&#+.bin", "what goes in"
	address, err := s.Signer.PresignPut(t.Context(), id, name, int64(len(content)), time.Hour)
	noError(t, err)
	if strings.Contains(address, s.SecretKey) || !strings.HasPrefix(address, s.Signer.Origin()+"/") {
		t.Errorf("the address is %s, its origin %s", address, s.Signer.Origin())
	}
	for _, wrong := range []string{content + "!", content[1:], ""} {
		if status := send(t, address, []byte(wrong)); status < 400 || status >= 500 {
			t.Errorf("%d bytes instead of %d: %d", len(wrong), len(content), status)
		}
	}
	if status := send(t, strings.Replace(address, "inputs/", "outputs/", 1), []byte(content)); status != http.StatusForbidden {
		t.Errorf("another file by the address of this one: %d", status)
	}
	if status := send(t, address, []byte(content)); status != http.StatusOK {
		t.Fatalf("PUT: %d", status)
	}
	empty, err := s.Signer.PresignPut(t.Context(), id, "inputs/empty", 0, time.Hour)
	noError(t, err)
	if status := send(t, empty, nil); status != http.StatusOK {
		t.Errorf("PUT of nothing: %d", status)
	}
	listed, err := All(s.store.List(t.Context(), id, "inputs/"))
	noError(t, err)
	if len(listed) != 2 || listed[0].Name != name || listed[0].Size != int64(len(content)) || listed[1].Size != 0 {
		t.Errorf("listed %+v", listed)
	}
	if _, got := s.read(t, id, name, nil); got != content {
		t.Errorf("stored is %q", got)
	}
	for what, size := range map[string]int64{"more than one request stores": storage.MaxPut + 1, "less than nothing": -1} {
		_, err := s.Signer.PresignPut(t.Context(), id, name, size, time.Hour)
		class(t, what, err, errdefs.IsInvalidArgument)
	}
	_, err = s.Signer.PresignPut(t.Context(), id, "../x", 1, time.Hour)
	class(t, "a name that no file has", err, errdefs.IsInvalidArgument)
}

func (s *suite) testParts(t *testing.T) {
	parts := s.store.(storage.Parts)
	id := s.reserved(t)
	const name = "inputs/large ü"
	upload, err := parts.BeginParts(t.Context(), id, name)
	noError(t, err)
	body := bytes.Repeat([]byte("0123456789abcdef"), (storage.MinPart+160)/16)
	first, last := body[:storage.MinPart], body[storage.MinPart:]
	putPart := func(n int, part []byte) {
		t.Helper()
		address, err := s.Signer.PresignPart(t.Context(), id, name, upload, n, int64(len(part)), time.Hour)
		noError(t, err)
		refused(t, "a part that is too short", address, part[1:])
		if status := send(t, address, part); status != http.StatusOK {
			t.Fatalf("PUT of part %d: %d", n, status)
		}
	}
	stored, err := parts.StoredParts(t.Context(), id, name, upload)
	if err != nil || len(stored) != 0 {
		t.Fatalf("before the first, the parts are %+v, %v", stored, err)
	}
	putPart(2, last)
	if !s.KeepsParts {
		putPart(1, last) // the wrong one, which the next replaces
	}
	before, err := parts.StoredParts(t.Context(), id, name, upload)
	noError(t, err)
	putPart(1, first)
	stored, err = parts.StoredParts(t.Context(), id, name, upload)
	noError(t, err)
	if len(stored) != 2 || stored[0].Number != 1 || stored[0].Size != int64(len(first)) || stored[1].Number != 2 || stored[1].Size != int64(len(last)) {
		t.Fatalf("the parts are %+v", stored)
	}
	if listed, err := All(s.store.List(t.Context(), id, "inputs/")); err != nil || len(listed) != 0 {
		t.Errorf("before it is joined, listed is %+v, %v", listed, err)
	}
	class(t, "parts that were not the last", parts.JoinParts(t.Context(), id, name, upload, before), errdefs.IsInvalidArgument)
	noError(t, parts.JoinParts(t.Context(), id, name, upload, stored))
	if _, got := s.read(t, id, name, nil); got != string(body) {
		t.Errorf("stored are %d bytes, not %d", len(got), len(body))
	}
	_, err = parts.StoredParts(t.Context(), id, name, upload)
	class(t, "the parts of a file that was joined", err, errdefs.IsNotFound)
	noError(t, parts.DropParts(t.Context(), id, name, upload))
	if listed, err := All(s.store.List(t.Context(), id, "inputs/")); err != nil || len(listed) != 1 || listed[0].Size != int64(len(body)) {
		t.Errorf("listed is %+v, %v", listed, err)
	}
	for _, n := range []int{0, storage.MaxParts + 1} {
		_, err := s.Signer.PresignPart(t.Context(), id, name, upload, n, 1, time.Hour)
		class(t, "a part's number that there is not", err, errdefs.IsInvalidArgument)
	}
	noError(t, s.store.Remove(t.Context(), id))
}

func (s *suite) testDroppedParts(t *testing.T) {
	parts := s.store.(storage.Parts)
	id := s.reserved(t)
	upload, err := parts.BeginParts(t.Context(), id, "inputs/large")
	noError(t, err)
	address, err := s.Signer.PresignPart(t.Context(), id, "inputs/large", upload, 1, 3, time.Hour)
	noError(t, err)
	if status := send(t, address, []byte("abc")); status != http.StatusOK {
		t.Fatalf("PUT of a part: %d", status)
	}
	for range 2 {
		noError(t, parts.DropParts(t.Context(), id, "inputs/large", upload))
	}
	if status := send(t, address, []byte("abc")); status != http.StatusNotFound {
		t.Errorf("a part of an upload that was dropped: %d", status)
	}
	_, err = parts.StoredParts(t.Context(), id, "inputs/large", upload)
	class(t, "the parts of an upload that was dropped", err, errdefs.IsNotFound)
	err = parts.JoinParts(t.Context(), id, "inputs/large", upload, []storage.Part{{Number: 1, Size: 3, ETag: "900150983cd24fb0d6963f7d28e17f72"}})
	class(t, "joining an upload that was dropped", err, errdefs.IsNotFound)
	noError(t, s.store.Remove(t.Context(), id))
	noError(t, parts.DropParts(t.Context(), id, "inputs/large", upload)) // of a place that is gone
	address, err = s.Signer.PresignPut(t.Context(), id, "inputs/late", 3, time.Hour)
	noError(t, err)
	if status := send(t, address, []byte("abc")); s.Bucket == "" && status != http.StatusNotFound {
		t.Errorf("a file of a place that is gone: %d", status)
	}
}
