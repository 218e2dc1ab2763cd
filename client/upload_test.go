package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// memoryFile is an UploadSource.
type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

// uploadServer is a daemon and its storage: it takes each piece after it has refused it a few
// times, and knows the rest of an upload.
type uploadServer struct {
	mu      sync.Mutex
	stored  map[string]string // by the address's path
	refuse  map[string][]int  // the next answers
	renewed int
	foreign bool // answers about the upload are somebody else's
	upload  Upload
}

func (s *uploadServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPost {
		s.renewed++
		if s.foreign {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>sign in</html>")
			return
		}
		rest := s.upload
		rest.Files = nil
		for _, f := range s.upload.Files {
			if f.Address != nil && s.stored["/"+f.Path] != "" {
				f.Address, f.Stored = nil, true
			}
			rest.Files = append(rest.Files, f)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rest)
		return
	}
	body, _ := io.ReadAll(r.Body)
	if next := s.refuse[r.URL.Path]; len(next) > 0 {
		s.refuse[r.URL.Path] = next[1:]
		w.WriteHeader(next[0])
		_, _ = io.WriteString(w, "<Error><Message>not now</Message></Error>")
		return
	}
	if r.Header.Get("Authorization") != "" || strconv.Itoa(len(body)) != r.Header.Get("Content-Length") && r.ContentLength != int64(len(body)) {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.stored[r.URL.Path] = string(body)
}

func newUploadServer(t *testing.T) (*uploadServer, *Uploader, *atomic.Int64) {
	t.Helper()
	s := &uploadServer{stored: map[string]string{}, refuse: map[string][]int{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	api, err := New(Config{Server: server.URL, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	s.upload = Upload{JobId: "up", Files: []UploadedFile{
		{Path: "small", Size: 5, Address: new(server.URL + "/small")},
		{Path: "empty", Address: new(server.URL + "/empty")},
		{Path: "large", Size: 25, Parts: &[]UploadPart{
			{Number: 1, Size: 10, Address: server.URL + "/large/1"}, {Number: 2, Offset: 10, Size: 10, Address: server.URL + "/large/2"}, {Number: 3, Offset: 20, Size: 5, Address: server.URL + "/large/3"},
		}},
	}}
	files := map[string]string{"small": "small", "empty": "", "large": "0123456789abcdefghijvwxyz"}
	sent := new(atomic.Int64)
	return s, &Uploader{API: api, HTTP: server.Client(), Sent: func(n int) { sent.Add(int64(n)) }, Open: func(path string) (UploadSource, error) {
		content, ok := files[path]
		if !ok {
			return nil, fmt.Errorf("no file %s", path)
		}
		return memoryFile{bytes.NewReader([]byte(content))}, nil
	}}, sent
}

func TestUploader(t *testing.T) {
	s, u, sent := newUploadServer(t)
	s.refuse["/large/2"] = []int{503}
	if err := u.Send(t.Context(), s.upload); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/small": "small", "/empty": "", "/large/1": "0123456789", "/large/2": "abcdefghij", "/large/3": "vwxyz"} {
		if got, ok := s.stored[path]; !ok || got != want {
			t.Errorf("%s: %q, %t", path, got, ok)
		}
	}
	if sent.Load() != 30 || s.renewed != 0 {
		t.Errorf("told of %d bytes, renewed %d times", sent.Load(), s.renewed)
	}
}

// TestUploaderRenews has addresses refused that are no longer valid.
func TestUploaderRenews(t *testing.T) {
	s, u, sent := newUploadServer(t)
	s.refuse["/large/3"] = []int{403, 403}
	if err := u.Send(t.Context(), s.upload); err != nil {
		t.Fatal(err)
	}
	if s.stored["/large/3"] != "vwxyz" || s.renewed == 0 || sent.Load() != 30 {
		t.Errorf("stored %q, renewed %d times, told of %d bytes", s.stored, s.renewed, sent.Load())
	}
}

// TestUploaderForeignAnswer has something between answer in the daemon's place.
func TestUploaderForeignAnswer(t *testing.T) {
	s, u, _ := newUploadServer(t)
	s.refuse["/large/3"], s.foreign = []int{403}, true
	if err := u.Send(t.Context(), s.upload); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
}

// TestUploaderRedirected has a proxy send each request to a page to sign in at: nothing counts
// as stored, so that another way can be taken.
func TestUploaderRedirected(t *testing.T) {
	s, u, _ := newUploadServer(t)
	u.HTTP = nil
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			_, _ = io.WriteString(w, "<html>sign in</html>")
			return
		}
		http.Redirect(w, r, "/login", http.StatusFound)
	}))
	defer proxy.Close()
	for i := range s.upload.Files {
		s.upload.Files[i].Parts, s.upload.Files[i].Address = nil, &proxy.URL
	}
	if err := u.Send(t.Context(), s.upload); !errors.Is(err, ErrStorage) || !strings.Contains(err.Error(), "302") {
		t.Errorf("%v", err)
	}
}

// TestUploaderRedirectedInACircle has a storage that redirects without end. net/http follows
// where there is no body to send again, that is, for an empty file.
func TestUploaderRedirectedInACircle(t *testing.T) {
	s, u, _ := newUploadServer(t)
	u.HTTP = nil
	var asked atomic.Int64
	circle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > 1000 { // so that this test ends
			return
		}
		http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
	}))
	defer circle.Close()
	s.upload.Files = slices.DeleteFunc(s.upload.Files, func(f UploadedFile) bool { return f.Size > 0 })
	s.upload.Files[0].Address = &circle.URL
	if err := u.Send(t.Context(), s.upload); !errors.Is(err, ErrStorage) || !strings.Contains(err.Error(), "307") {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

// TestUploaderRefused has a storage that takes nothing.
func TestUploaderRefused(t *testing.T) {
	s, u, _ := newUploadServer(t)
	always := make([]int, 1000)
	for i := range always {
		always[i] = 403
	}
	for _, path := range []string{"/small", "/empty", "/large/1", "/large/2", "/large/3"} {
		s.refuse[path] = always
	}
	err := u.Send(t.Context(), s.upload)
	if !errors.Is(err, ErrStorage) || !strings.Contains(err.Error(), "403 not now") || s.renewed > 0 {
		t.Errorf("%v, renewed %d times", err, s.renewed)
	}
}
