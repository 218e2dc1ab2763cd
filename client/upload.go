package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of an Uploader.
const (
	uploadsOpen  = 4               // requests at a time
	uploadTries  = 4               // of one file or part, by one address
	uploadRounds = 5               // in which nothing gets further
	uploadStall  = time.Minute     // without a byte
	uploadPause  = time.Second / 2 // before another try, growing

	uploadRedirects = 10 // of one request
)

// ErrStorage says that no file of an upload could be put into storage at all.
var ErrStorage = errors.New("the storage takes nothing at the addresses that the daemon gives")

// Uploader puts the files of an Upload into storage, several at a time. What fails is sent
// again, to new addresses where the old ones are refused.
type Uploader struct {
	API *ClientWithResponses
	// Open opens a file by its path in the upload; the caller closes it.
	Open func(path string) (UploadSource, error)
	// Sent is told of bytes that were sent for the first time, by several goroutines at
	// once; nil for nobody.
	Sent func(bytes int)
	// HTTP sends to storage; nil for a client of its own.
	HTTP *http.Client
}

// UploadSource is what an Uploader reads a file from.
type UploadSource interface {
	io.ReaderAt
	io.Closer
}

// Send sends what is missing of the upload. The error wraps ErrStorage where nothing of it got
// into storage, so that another way may do.
func (u *Uploader) Send(ctx context.Context, upload Upload) error {
	sender := &sender{Uploader: u, seen: map[piece]*atomic.Int64{}}
	if u.HTTP == nil {
		transport := &http.Transport{Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: uploadsOpen}
		defer transport.CloseIdleConnections()
		sender.http = &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.Method != http.MethodPut || len(via) == uploadRedirects { // a page to log in at, perhaps, which stores nothing
				return http.ErrUseLastResponse
			}
			return nil
		}}
	} else {
		sender.http = u.HTTP
	}
	for round := 1; ; round++ {
		before := sender.stored.Load()
		err := sender.sendAll(ctx, upload)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case sender.stored.Load() == 0:
			return fmt.Errorf("%w: %w", ErrStorage, err)
		case sender.stored.Load() > before:
			round = 1
		case round == uploadRounds:
			return err
		}
		answer, renewErr := u.API.RenewUploadWithResponse(ctx, upload.JobId, UploadRenewal{})
		if renewErr != nil {
			return fmt.Errorf("%w; asked for new addresses: %w", err, renewErr)
		}
		if answer.JSON200 == nil {
			return fmt.Errorf("%w; asked for new addresses: the daemon's answer cannot be read", err)
		}
		upload = *answer.JSON200
	}
}

// piece is a file, or a part of one.
type piece struct {
	path   string
	offset int64
	size   int64
}

// sender is one Send.
type sender struct {
	*Uploader
	http   *http.Client
	stored atomic.Int64 // pieces

	mu   sync.Mutex
	seen map[piece]*atomic.Int64 // how much of a piece was told of
}

// sendAll sends all pieces, and returns the first error.
func (s *sender) sendAll(ctx context.Context, upload Upload) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type task struct {
		piece
		address string
	}
	tasks := make(chan task)
	var working sync.WaitGroup
	for range uploadsOpen {
		working.Go(func() {
			for t := range tasks {
				if err := s.send(ctx, t.piece, t.address); err != nil {
					cancel(err)
				}
			}
		})
	}
	give := func(t task) bool {
		select {
		case tasks <- t:
			return true
		case <-ctx.Done():
			return false
		}
	}
deal:
	for _, f := range upload.Files {
		if f.Address != nil && !give(task{piece{f.Path, 0, f.Size}, *f.Address}) {
			break
		}
		if f.Parts == nil {
			continue
		}
		for _, p := range *f.Parts {
			if !give(task{piece{f.Path, p.Offset, p.Size}, p.Address}) {
				break deal
			}
		}
	}
	close(tasks)
	working.Wait()
	return context.Cause(ctx)
}

// send sends one piece, again where that may help.
func (s *sender) send(ctx context.Context, p piece, address string) error {
	for try := 1; ; try++ {
		err := s.put(ctx, p, address)
		if err == nil {
			s.stored.Add(1)
			return nil
		}
		var refused *refusedError
		if ctx.Err() != nil || try == uploadTries || errors.As(err, &refused) && refused.status < 500 {
			return fmt.Errorf("send %s to storage: %w", p.path, err)
		}
		select {
		case <-time.After(time.Duration(try) * uploadPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refusedError is an answer of the storage that is no success.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("it answers %d %s", e.status, e.text))
}

// put sends one piece, once.
func (s *sender) put(ctx context.Context, p piece, address string) error {
	file, err := s.Open(p.path)
	if err != nil {
		return &refusedError{text: err.Error()} // trying again is of no use
	}
	defer file.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(uploadStall, func() { cancel(fmt.Errorf("nothing was taken for %s", uploadStall)) })
	defer stalled.Stop()
	body := &pieceReader{SectionReader: io.NewSectionReader(file, p.offset, p.size), seen: s.seenOf(p), sent: s.Sent, moved: func() { stalled.Reset(uploadStall) }}
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, address, body)
	if err != nil {
		return errors.New("the daemon's address of the storage is none")
	}
	if request.ContentLength = p.size; p.size == 0 {
		request.Body = http.NoBody
	}
	answer, err := s.http.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the address is as good as credentials
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	withoutSwitch(answer)
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if answer.StatusCode < 200 || answer.StatusCode >= 300 {
		return &refusedError{status: answer.StatusCode, text: between(string(text), "<Message>", "</Message>")}
	}
	return nil
}

// between is what stands between two texts; empty where they do not.
func between(text, begin, end string) string {
	_, text, _ = strings.Cut(text, begin)
	text, _, found := strings.Cut(text, end)
	if !found {
		return ""
	}
	return text
}

func (s *sender) seenOf(p piece) *atomic.Int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[p] == nil {
		s.seen[p] = new(atomic.Int64)
	}
	return s.seen[p]
}

// pieceReader reads a piece and reports its progress.
type pieceReader struct {
	*io.SectionReader
	at    int64
	seen  *atomic.Int64
	sent  func(int)
	moved func()
}

// Read reports what is read for the first time.
func (r *pieceReader) Read(b []byte) (int, error) {
	n, err := r.SectionReader.Read(b)
	r.moved()
	r.at += int64(n)
	for seen := r.seen.Load(); seen < r.at; seen = r.seen.Load() { // an earlier try of the piece may still read
		if r.seen.CompareAndSwap(seen, r.at) {
			if r.sent != nil {
				r.sent(int(r.at - seen))
			}
			break
		}
	}
	return n, err
}

// WriteTo would read past Read.
func (r *pieceReader) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, onlyReader{r}) }

type onlyReader struct{ io.Reader }
