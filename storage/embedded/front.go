package embedded

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/rclone/gofakes3"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const requestIDHeader = "X-Amz-Request-Id"

// drainLimit is how much of a refused body is read, so that a client that is
// still sending sees the answer and not a broken connection.
const drainLimit = 32 << 20

// front is the server's way in: it lets signed requests pass, with bodies
// checked and taken out of their chunks, and answers those about multipart
// uploads itself. All others are gofakes3's.
type front struct {
	verifier *verifier
	store    *folder.Store
	s3       http.Handler
	log      *slog.Logger
	running  sync.RWMutex // held for reading by each request
}

func newFront(store *folder.Store, accessKey, secretKey string, log *slog.Logger) *front {
	return &front{
		verifier: &verifier{accessKey: accessKey, secretKey: secretKey, now: time.Now},
		store:    store,
		// Without keys of its own it asks for no signature: they are checked here.
		s3:  gofakes3.New(&backend{store: store, log: log}, gofakes3.WithTimeSkewLimit(0)).Server(),
		log: log,
	}
}

// wait returns when no request is under way. Their connections must have been
// closed.
func (f *front) wait() {
	f.running.Lock()
	defer f.running.Unlock()
}

// ServeHTTP answers one request. It never panics, whatever is sent.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.running.RLock()
	defer f.running.RUnlock()
	x := &exchange{ResponseWriter: w}
	defer func() {
		if p := recover(); p != nil {
			f.log.Error("a storage request made the server panic", "method", r.Method, "path", r.URL.Path,
				"error", fmt.Sprint(p), "stack", string(debug.Stack()))
			if !x.started {
				writeFault(x, r, serverFault())
				return
			}
			panic(http.ErrAbortHandler) // the answer is half out: cut the connection
		}
	}()
	x.Header().Set(requestIDHeader, rand.Text())
	if r.ContentLength != 0 {
		x.readDeadline(bodyTimeout) // also for who gets refused and is still sending
	}
	signed, fault := f.verifier.verify(r)
	if fault == nil {
		x.payload, fault = newPayload(r, signed, x.readDeadline)
	}
	if fault != nil {
		f.log.Debug("storage request refused", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "error", fault)
		writeFault(x, r, fault)
		return
	}
	if x.payload.chunks != nil {
		defer x.payload.chunks.release()
	}
	x.check = writeCheck(r.Header)
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	f.route(x, r)
	if !x.started {
		x.WriteHeader(http.StatusOK) // there was nothing to write but headers
	}
	if x.code >= 400 && x.payload.left > 0 {
		x.readDeadline(bodyTimeout)
		_, _ = io.CopyN(io.Discard, x.payload.source, min(drainLimit, x.payload.left))
	}
}

func (f *front) route(x *exchange, r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	if name := unkept(r.Header); name != "" {
		writeFault(x, r, newFault(http.StatusNotImplemented, gofakes3.ErrNotImplemented, "The header %s is not supported here.", strings.ToLower(name)))
		return
	}
	switch {
	case query.Has("uploads") || query.Get("uploadId") != "":
		m := multipart{store: f.store, bucket: bucket, key: key, query: query, x: x}
		if err := m.serve(r); err != nil {
			f.fail(x, r, err)
		}
	case r.Method == http.MethodPut && bucket != "" && key == "" && plain(query):
		if err := f.createBucket(x, r, bucket); err != nil {
			f.fail(x, r, err)
		}
	case r.Method == http.MethodPost && key == "" && !query.Has("delete"):
		// A form names its key and policy itself; nothing here needs them.
		writeFault(x, r, newFault(http.StatusNotImplemented, gofakes3.ErrNotImplemented, "Uploads by HTML form are not supported."))
	default:
		exposeETags(r.Header)
		f.s3.ServeHTTP(x, r)
	}
}

// unkept returns the name of a header that asks for a promise that would not be
// kept, or "".
func unkept(h http.Header) string {
	for _, name := range []string{
		"X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Customer-Algorithm",
		"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Legal-Hold", "X-Amz-Bucket-Object-Lock-Enabled",
	} {
		if value := h.Get(name); value != "" && !strings.EqualFold(value, "false") && !strings.EqualFold(value, "off") {
			return name
		}
	}
	return ""
}

// plain reports whether a query asks for no sub-resource.
func plain(query url.Values) bool {
	for name := range query {
		if name != "x-id" && !strings.HasPrefix(name, "X-Amz-") {
			return false
		}
	}
	return true
}

// createBucket is here because gofakes3 refuses names such as "a.b", whose
// labels are shorter than three characters.
func (f *front) createBucket(x *exchange, r *http.Request, bucket string) error {
	if !folder.ValidBucket(bucket) {
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidBucketName,
			"A bucket's name has 3 to 63 of a-z, 0-9, - and ., begins and ends with a letter or digit, has no two dots together and is no IP address.")
	}
	if _, err := io.CopyN(io.Discard, x.payload, maxXML); err != io.EOF { // a region, which is all one here
		return cmp.Or(err, error(gofakes3.ErrMaxMessageLengthExceeded))
	}
	if err := f.store.CreateBucket(bucket); err != nil {
		return err
	}
	x.Header().Set("Location", "/"+bucket)
	x.WriteHeader(http.StatusOK)
	return nil
}

// fail answers with an error.
func (f *front) fail(x *exchange, r *http.Request, err error) {
	answer, known := faultOf(err)
	if !known && r.Context().Err() == nil {
		f.log.Error("a storage request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	writeFault(x, r, answer)
}

// exchange is one request's way through the server. It is the ResponseWriter
// of all that answers it, and puts right what gofakes3 cannot express.
type exchange struct {
	http.ResponseWriter
	payload *payload
	check   folder.Check // what the request demands of the object it replaces

	// status is sent instead of gofakes3's 500 for a code it does not know.
	status  int
	code    int
	started bool
}

type exchangeKey struct{}

// exchangeOf returns the exchange that a request's context belongs to.
func exchangeOf(ctx context.Context) *exchange {
	return ctx.Value(exchangeKey{}).(*exchange)
}

// readDeadline gives the client time to send the next bytes; 0 is for ever. A
// body may take as long as it likes, as long as it moves.
func (x *exchange) readDeadline(d time.Duration) {
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	// Only a ResponseWriter of a test knows no deadlines.
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(at)
}

// WriteHeader sends the status and headers.
func (x *exchange) WriteHeader(code int) {
	if code == http.StatusInternalServerError && x.status != 0 {
		code = x.status
	}
	x.started, x.code = true, code
	h := x.Header()
	if etag := h.Get("ETag"); etag != "" {
		h.Set("ETag", wireETag(etag))
	}
	// Whoever may ask is known by the signature; a browser's pages are not
	// invited besides.
	for _, name := range []string{"Origin", "Methods", "Headers"} {
		h.Del("Access-Control-Allow-" + name)
	}
	h.Del("Access-Control-Expose-Headers")
	h.Set("Server", "shepherd")
	x.ResponseWriter.WriteHeader(code)
}

// Write sends a part of the body.
func (x *exchange) Write(b []byte) (int, error) {
	if !x.started {
		x.WriteHeader(http.StatusOK)
	}
	return x.ResponseWriter.Write(b)
}

// ReadFrom lets the kernel send files.
func (x *exchange) ReadFrom(r io.Reader) (int64, error) {
	if !x.started {
		x.WriteHeader(http.StatusOK)
	}
	return io.Copy(x.ResponseWriter, r)
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }
