package embedded

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/diskspace"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const requestIDHeader = "X-Amz-Request-Id"

const (
	// drainLimit is how much of a refused body is read, so that a client that is
	// still sending sees the answer and not a broken connection.
	drainLimit = 32 << 20
	// maxDocument bounds an XML document that a client sends: a list of 10,000
	// parts with checksums is a quarter of it.
	maxDocument = 10 << 20
	// sendPiece is what a client has sendTimeout to take.
	sendPiece   = 1 << 20
	sendTimeout = 2 * time.Minute
)

// handler answers requests.
type handler struct {
	verifier   *verifier
	store      *folder.Store
	operations map[target][]*operation
	hosts      hosts
	cors       corsRules
	space      diskspace.Floor
	log        *slog.Logger
	running    sync.RWMutex // held for reading by each request
}

func newHandler(store *folder.Store, c Config) *handler {
	h := &handler{
		verifier: &verifier{accessKey: c.AccessKey, secretKey: c.SecretKey, now: time.Now},
		store:    store,
		hosts:    newHosts(c.Domains),
		cors:     corsRules{origins: c.AllowedOrigins},
		space:    diskspace.Floor{Path: c.Dir, Free: c.MinFree},
		log:      c.Log,
	}
	h.operations = operationsByTarget(operations())
	return h
}

// wait returns when no request is being answered. Their connections must have
// been closed.
func (h *handler) wait() {
	h.running.Lock()
	defer h.running.Unlock()
}

// request is one request on its way through the server.
type request struct {
	*http.Request
	w           *response
	params      params // of the query, without those of the signature
	bucket, key string
	payload     *payload
}

// query returns a query parameter.
func (r *request) query(name string) string { return r.params.get(name) }

// readBody returns the body of a request that holds a document.
func (r *request) readBody() ([]byte, error) {
	if r.payload.size > maxDocument {
		return nil, badRequest(codeEntityTooLarge, "The document in the body is larger than %d bytes.", maxDocument)
	}
	return io.ReadAll(r.payload)
}

// ServeHTTP answers one request. It never panics, whatever is sent.
func (h *handler) ServeHTTP(writer http.ResponseWriter, hr *http.Request) {
	h.running.RLock()
	defer h.running.RUnlock()
	w := &response{ResponseWriter: writer}
	r := &request{Request: hr, w: w}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			h.log.Error("a storage request made the server panic", "method", r.Method, "path", r.URL.Path,
				"error", fmt.Sprint(p), "stack", string(debug.Stack()))
			if !w.started {
				e, _ := errorFor(nil)
				writeError(w, r.Request, e)
				return
			}
			panic(http.ErrAbortHandler) // the answer is half out: cut the connection
		}
	}()
	w.Header().Set(requestIDHeader, rand.Text())
	w.Header().Set("Server", "shepherd")
	w.writeDeadline()
	if r.ContentLength != 0 {
		w.readDeadline(bodyTimeout) // also for who gets refused and is still sending
	}
	h.cors.announce(w, r.Request)
	if err := h.answer(r); err != nil {
		h.fail(r, err)
	}
	if !w.started {
		w.WriteHeader(http.StatusOK) // there was nothing to write but headers
	}
	if w.code >= 400 {
		r.drain()
	}
	if p := r.payload; p != nil && p.chunks != nil {
		p.chunks.release()
	}
}

// drain reads what a client goes on sending of a request that was refused.
func (r *request) drain() {
	untouched := r.payload == nil || r.payload.left == r.payload.size
	if r.ContentLength == 0 || untouched && r.Header.Get("Expect") != "" { // it waits for the answer
		return
	}
	r.w.readDeadline(bodyTimeout)
	_, _ = io.CopyN(io.Discard, r.Body, drainLimit)
}

// answer finds out what a request asks for, and has it answered.
func (h *handler) answer(r *request) error {
	var ok bool
	if r.params, ok = parseQuery(r.URL.RawQuery); !ok {
		return badRequest(codeInvalidURI, "The query of the URL cannot be read.")
	}
	if r.Method == http.MethodOptions {
		return h.cors.preflight(r)
	}
	r.bucket, r.key = h.hosts.resolve(r.Host, r.URL.Path)
	op, err := h.find(r)
	if op != nil && op.anonymous {
		return op.do(h, r)
	}
	signed, refused := h.verifier.verify(r.Request, r.params, h.hosts.bucket(r.Host))
	if refused != nil {
		return refused
	}
	// What the operation is, is said to who holds the keys alone.
	if err != nil {
		return err
	}
	r.params = r.params.without(signed.params)
	if signed.presigned {
		r.headersFromQuery()
		if op, err = h.find(r); err != nil { // a header may make another of it
			return err
		}
	}
	if err := op.allows(r); err != nil {
		return err
	}
	if err := h.hosts.checkPathStyle(h.store, r, op); err != nil {
		return err
	}
	if r.payload, refused = newPayload(r.Request, signed, op.sums, r.w.readDeadline); refused != nil {
		return refused
	}
	if op.grows {
		if err := h.space.Check(r.payload.size); err != nil {
			return err
		}
	}
	return op.do(h, r)
}

// headersFromQuery makes headers of the parameters of a presigned URL that stand
// for one, as SDKs write them.
func (r *request) headersFromQuery() {
	r.params = slices.DeleteFunc(r.params, func(p [2]string) bool {
		name := http.CanonicalHeaderKey(p[0])
		if !strings.HasPrefix(name, "X-Amz-") {
			return false
		}
		if r.Header.Get(name) == "" && !isSumOfNothing(name, p[1]) {
			r.Header.Set(name, p[1])
		}
		return true
	})
}

// isSumOfNothing reports whether a parameter is the checksum of an empty body. The AWS SDK
// for JavaScript puts that into the URLs that it presigns, since it does not know what will
// be sent; S3 does not verify it.
func isSumOfNothing(name, value string) bool {
	algorithm, ok := strings.CutPrefix(name, checksumPrefix)
	sum := newChecksum(algorithm)
	return ok && sum != nil && encodeSum(sum) == value
}

// fail answers with an error.
func (h *handler) fail(r *request, err error) {
	e, known := errorFor(err)
	switch {
	case known:
		h.log.Debug("storage request refused", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "error", err)
	case r.Context().Err() == nil && !clientGone(err):
		h.log.Error("a storage request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	if r.w.started {
		panic(http.ErrAbortHandler) // the answer is half out: cut the connection
	}
	writeError(r.w, r.Request, e)
}

// clientGone reports whether an error is that of a client which went away or
// takes nothing any more.
func clientGone(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// response is the ResponseWriter of all answers.
type response struct {
	http.ResponseWriter
	code    int
	started bool
}

// readDeadline gives the client time to send the next bytes; 0 is for ever. A
// body may take as long as it likes, as long as it moves.
func (w *response) readDeadline(d time.Duration) {
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	// Only a ResponseWriter of a test knows no deadlines.
	_ = http.NewResponseController(w.ResponseWriter).SetReadDeadline(at)
}

// writeDeadline gives the client time to take the next bytes.
func (w *response) writeDeadline() {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(sendTimeout))
}

// WriteHeader sends the status and headers.
func (w *response) WriteHeader(code int) {
	w.started, w.code = true, code
	w.writeDeadline() // what came before may have taken its time
	w.ResponseWriter.WriteHeader(code)
}

// Write sends a part of the body.
func (w *response) Write(b []byte) (int, error) {
	if !w.started {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// ReadFrom lets the kernel send files.
func (w *response) ReadFrom(r io.Reader) (int64, error) {
	if !w.started {
		w.WriteHeader(http.StatusOK)
	}
	return io.Copy(w.ResponseWriter, r)
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
