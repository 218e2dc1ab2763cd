package daemon

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/claims"
)

// target is the daemon's listeners as hostile clients see them. Requests for /wait
// last until their client leaves, those for /busy until the test ends.
type target struct {
	*testing.T
	address string
	roots   *x509.CertPool // nil without TLS
	ended   chan struct{}

	waiting atomic.Int64
	most    atomic.Int64 // how many were waiting at once
}

func (h *target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/wait" || r.URL.Path == "/busy" {
		h.most.Store(max(h.most.Load(), h.waiting.Add(1)))
		defer h.waiting.Add(-1)
		left := r.Context().Done()
		if r.URL.Path == "/busy" {
			left = h.ended
		}
		<-left
		return
	}
	n, err := io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "%s %d %v", r.Method, n, err)
}

// newTarget opens the listeners of a configuration with TLS or without, and serves
// until the test ends.
func newTarget(t *testing.T, encrypted bool, headerTime time.Duration) *target {
	t.Helper()
	dir := t.TempDir()
	cfg := &config.Config{StateDir: dir, API: config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "s"), ReadTimeout: time.Minute}}
	h := &target{T: t, ended: make(chan struct{})}
	if encrypted {
		example := httptest.NewUnstartedServer(nil)
		example.StartTLS() // for its certificate
		defer example.Close()
		h.roots = x509.NewCertPool()
		h.roots.AddCert(example.Certificate())
		pair := example.TLS.Certificates[0]
		key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		cfg.API.TLS = &config.TLS{CertFile: dir + "/cert", KeyFile: dir + "/key"}
		for file, block := range map[string]*pem.Block{cfg.API.TLS.CertFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, cfg.API.TLS.KeyFile: {Type: "PRIVATE KEY", Bytes: key}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	l, err := openListeners(cfg, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if headerTime > 0 {
		l.headerTime = headerTime
	}
	l.serve(t.Context(), h, h, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		close(h.ended)
		for _, server := range l.servers {
			server.Close()
		}
		l.close()
		for range l.servers {
			<-l.ended
		}
	})
	h.address = l.network[0].Addr().String()
	return h
}

// hang is for what should take far less.
const hang = 2 * time.Minute

// dial connects; reads and writes fail when only a hang can be the cause.
func (h *target) dial() net.Conn {
	h.Helper()
	var conn net.Conn
	var err error
	if h.roots != nil {
		conn, err = tls.Dial("tcp", h.address, &tls.Config{RootCAs: h.roots, ServerName: "example.com", NextProtos: []string{"h2"}})
	} else {
		conn, err = net.Dial("tcp", h.address)
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(hang)); err != nil {
		h.Fatal(err)
	}
	return conn
}

// works checks that an ordinary client is answered.
func (h *target) works() {
	h.Helper()
	scheme := "http"
	transport := &http.Transport{}
	if h.roots != nil {
		scheme, transport.TLSClientConfig, transport.ForceAttemptHTTP2 = "https", &tls.Config{RootCAs: h.roots, ServerName: "example.com"}, true
	}
	client := &http.Client{Transport: transport, Timeout: hang}
	defer client.CloseIdleConnections()
	if status, body := get(h.T, client, scheme+"://"+h.address+"/"); status != http.StatusOK || body != "GET 0 <nil>" {
		h.Errorf("an ordinary client afterwards: %d %s", status, body)
	}
}

// h2 is a client of HTTP/2 that sends whatever it is told to.
type h2 struct {
	*target
	*http2.Framer
	conn    net.Conn
	out     *bufio.Writer // what Framer writes
	headers bytes.Buffer
	encoder *hpack.Encoder
}

// connect opens a connection and exchanges the settings.
func (h *target) connect() *h2 {
	h.Helper()
	conn := h.dial()
	c := &h2{target: h, conn: conn, out: bufio.NewWriterSize(conn, 64<<10)}
	c.Framer = http2.NewFramer(c.out, conn)
	c.AllowIllegalReads, c.AllowIllegalWrites = true, true
	c.encoder = hpack.NewEncoder(&c.headers)
	_, err := io.WriteString(c.out, http2.ClientPreface)
	if err := errors.Join(err, c.WriteSettings(), c.out.Flush()); err != nil {
		h.Fatal(err)
	}
	return c
}

// block encodes fields, given as names and values.
func (c *h2) block(fields ...string) []byte {
	c.headers.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			c.Fatal(err)
		}
	}
	return bytes.Clone(c.headers.Bytes())
}

// request is the header block of a GET with further fields.
func (c *h2) request(path string, more ...string) []byte {
	return c.block(append([]string{":method", "GET", ":scheme", "https", ":authority", "example.com", ":path", path}, more...)...)
}

// open sends the headers of a request.
func (c *h2) open(stream uint32, block []byte) {
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: true}) // the connection may be closed already
}

// end reads until the server refuses: it returns the error code of a GOAWAY or
// RST_STREAM, "status N" for an answer, or "closed".
func (c *h2) end() string {
	c.Helper()
	_ = c.out.Flush() // the connection may be closed already
	decoder := hpack.NewDecoder(4096, nil)
	for {
		frame, err := c.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.Fatal("the server says nothing")
		}
		if err != nil {
			return "closed"
		}
		switch f := frame.(type) {
		case *http2.GoAwayFrame:
			return f.ErrCode.String()
		case *http2.RSTStreamFrame:
			return f.ErrCode.String()
		case *http2.HeadersFrame:
			fields, err := decoder.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				c.Fatal(err)
			}
			for _, field := range fields {
				if field.Name == ":status" {
					return "status " + field.Value
				}
			}
		}
	}
}

// TestHostileHTTP2 breaks the rules of RFC 9113: the server refuses, and goes on
// answering others.
func TestHostileHTTP2(t *testing.T) {
	claims.Hold(t, "C17")
	h := newTarget(t, true, 0)
	h.works()
	long := strings.Repeat("x", 8000)
	for name, c := range map[string]struct {
		send func(*h2)
		want string // several words: any of them
	}{
		"an ordinary request":                {func(c *h2) { c.open(1, c.request("/")) }, "status 200"},
		"headers on the connection's stream": {func(c *h2) { c.open(0, c.request("/")) }, "PROTOCOL_ERROR closed"},
		"a stream of the server's":           {func(c *h2) { c.open(2, c.request("/")) }, "PROTOCOL_ERROR"},
		"a stream number that went back": {func(c *h2) {
			c.open(5, c.request("/wait"))
			c.open(3, c.request("/"))
		}, "PROTOCOL_ERROR STREAM_CLOSED"},
		"data of a stream that is not open": {func(c *h2) { _ = c.WriteData(7, true, []byte("x")) }, "PROTOCOL_ERROR STREAM_CLOSED"},
		"a continuation of nothing":         {func(c *h2) { _ = c.WriteContinuation(1, true, c.request("/")) }, "PROTOCOL_ERROR"},
		"headers that another frame interrupts": {func(c *h2) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.request("/"), EndStream: true})
			_ = c.WritePing(false, [8]byte{})
		}, "PROTOCOL_ERROR"},
		"a frame beyond the size that was agreed": {func(c *h2) { _ = c.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 2<<20)) }, "FRAME_SIZE_ERROR closed"},
		"a window that grows by nothing":          {func(c *h2) { _ = c.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, "PROTOCOL_ERROR"},
		"a window beyond 2^31": {func(c *h2) {
			for range 3 {
				_ = c.WriteWindowUpdate(0, 1<<31-1)
			}
		}, "FLOW_CONTROL_ERROR"},
		"a ping of another length":     {func(c *h2) { _ = c.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, "FRAME_SIZE_ERROR"},
		"settings of an odd length":    {func(c *h2) { _ = c.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, "FRAME_SIZE_ERROR"},
		"a push of the client's":       {func(c *h2) { _ = c.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2, 0x82}) }, "PROTOCOL_ERROR"},
		"a header block that is none":  {func(c *h2) { c.open(1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) }, "COMPRESSION_ERROR"},
		"an upper-case header":         {func(c *h2) { c.open(1, c.request("/", "X-Upper", "1")) }, "PROTOCOL_ERROR"},
		"a header of the connection's": {func(c *h2) { c.open(1, c.request("/", "connection", "close")) }, "PROTOCOL_ERROR status 400"},
		"a line end in a header":       {func(c *h2) { c.open(1, c.request("/", "x", "a\r\nb: c")) }, "PROTOCOL_ERROR"},
		"a pseudo-header at the end":   {func(c *h2) { c.open(1, c.block(":method", "GET", ":scheme", "https", "x", "y", ":path", "/")) }, "PROTOCOL_ERROR"},
		"an unknown pseudo-header":     {func(c *h2) { c.open(1, c.request("/", ":other", "1")) }, "PROTOCOL_ERROR"},
		"two paths":                    {func(c *h2) { c.open(1, c.request("/", ":path", "/admin/reload")) }, "PROTOCOL_ERROR"},
		"no path":                      {func(c *h2) { c.open(1, c.block(":method", "GET", ":scheme", "https")) }, "PROTOCOL_ERROR"},
		"another length than its headers": {func(c *h2) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(":method", "POST", ":scheme", "https", ":authority", "example.com", ":path", "/", "content-length", "9"), EndHeaders: true})
			_ = c.WriteData(1, true, []byte("longer than nine bytes"))
		}, "PROTOCOL_ERROR status 200"},
		"more headers than the bound": {func(c *h2) {
			var more []string
			for range 20 {
				more = append(more, "x", long)
			}
			block := c.request("/", more...)
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16000], EndStream: true})
			for block = block[16000:]; len(block) > 16000; block = block[16000:] {
				_ = c.WriteContinuation(1, false, block[:16000])
			}
			_ = c.WriteContinuation(1, true, block)
		}, "status 431 PROTOCOL_ERROR ENHANCE_YOUR_CALM closed"},
		"small headers that grow": {func(c *h2) { // each repetition is a byte of the compressed block
			more := make([]string, 0, 2*2000)
			for range 2000 {
				more = append(more, "x", strings.Repeat("y", 3000))
			}
			c.open(1, c.request("/", more...))
		}, "status 431 PROTOCOL_ERROR ENHANCE_YOUR_CALM closed"},
	} {
		t.Run(name, func(t *testing.T) {
			mine := &target{T: t, address: h.address, roots: h.roots}
			client := mine.connect()
			c.send(client)
			if got := client.end(); got == "" || !strings.Contains(c.want, got) {
				t.Errorf("the server says %s, expected one of: %s", got, c.want)
			}
			mine.works()
		})
	}
}

// resets opens requests and breaks them off at once.
func resets(path string) func(c *h2) func(i int) error {
	return func(c *h2) func(int) error {
		return func(i int) error {
			stream := uint32(2*i + 1)
			err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.request(path), EndStream: true, EndHeaders: true})
			return errors.Join(err, c.WriteRSTStream(stream, http2.ErrCodeCancel))
		}
	}
}

// TestFloodsOfHTTP2 sends in great numbers what is cheap to send: the server ends the
// connection where it would have to keep something of each, and otherwise does no more
// at once than its bounds allow.
func TestFloodsOfHTTP2(t *testing.T) {
	claims.Hold(t, "C17")
	for name, c := range map[string]struct {
		send  func(c *h2) func(i int) error
		count int
		ends  bool // the server ends the connection before count
		read  bool // the client reads what the server answers
	}{
		"continuations": {func(c *h2) func(int) error {
			filler := c.block("x", strings.Repeat("y", 1000))
			return func(i int) error {
				if i == 0 {
					return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.request("/"), EndStream: true})
				}
				return c.WriteContinuation(1, false, filler)
			}
		}, 100_000, true, true},
		"empty continuations": {func(c *h2) func(int) error {
			return func(i int) error {
				if i == 0 {
					return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.request("/"), EndStream: true})
				}
				return c.WriteContinuation(1, false, nil)
			}
		}, 100_000, false, true},
		"rapid resets":                 {resets("/wait"), 50_000, false, true},
		"rapid resets of what goes on": {resets("/busy"), 50_000, true, true},
		"pings whose answers are not read": {func(c *h2) func(int) error {
			return func(int) error { return c.WritePing(false, [8]byte{}) }
		}, 2_000_000, true, false},
		"settings whose answers are not read": {func(c *h2) func(int) error {
			return func(int) error { return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) }
		}, 100_000, false, false},
		"streams beyond the bound": {func(c *h2) func(int) error {
			return func(i int) error {
				return c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: c.request("/wait"), EndStream: true, EndHeaders: true})
			}
		}, 20_000, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTarget(t, true, 0)
			client := h.connect()
			read := make(chan error, 1)
			if c.read {
				go func() {
					_, err := io.Copy(io.Discard, client.conn)
					read <- err
				}()
			}
			send := c.send(client)
			var err error
			sent := 0
			for ; sent < c.count && err == nil; sent++ {
				err = send(sent)
			}
			if err == nil {
				err = client.out.Flush()
			}
			if c.ends && c.read { // what was sent last may not have met the end
				err = errors.Join(err, <-read)
			} else if c.ends && err == nil {
				t.Errorf("the server takes %d of them", sent)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the server keeps the connection after %d", sent)
			}
			h.works()
			if most := h.most.Load(); most > 1000 {
				t.Errorf("%d requests were served at once", most)
			}
		})
	}
}

// TestHostileHTTP1 sends requests that two readers could read in two ways, and such
// that never end.
func TestHostileHTTP1(t *testing.T) {
	claims.Hold(t, "C17")
	h := newTarget(t, false, 0)
	for name, c := range map[string]struct{ request, want string }{
		"an ordinary request":       {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		"another protocol":          {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		"HTTP/2 without TLS":        {http2.ClientPreface, "200"}, // a method that the API does not know
		"no Host":                   {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two Hosts":                 {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		"a Host that is none":       {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
		"two lengths":               {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
		"a negative length":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "400"},
		"a signed length":           {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", "400"},
		"an unknown encoding":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501"},
		"two encodings":             {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "400 501"},
		"a space before the colon":  {"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", "400"},
		"a NUL in a header":         {"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", "400"},
		"a line end in a header":    {"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "400"},
		"a header without name":     {"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", "400"},
		"a continued first header":  {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400"},
		"a version that is none":    {"GET / HTTP/x\r\nHost: a\r\n\r\n", "400"},
		"a version of the future":   {"GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505"},
		"a path with a line end":    {"GET /a\nb HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		"a request of another form": {"GET /\r\n\r\n", "400"},
		"headers beyond the bound":  {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 100) + "\r\n", "431"},
		"a path beyond the bound":   {"GET /" + strings.Repeat("y", 2*maxHeaders) + " HTTP/1.1\r\nHost: a\r\n\r\n", "431"},
		"a header without end":      {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 4*maxHeaders), "431"},
		"a chunk size without end":  {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 5000) + "1\r\na\r\n0\r\n\r\n", "200"},
		"a chunk size that is none": {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n", "200"},
		"a length beside chunks":    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin/reload HTTP/1.1\r\nHost: a\r\n\r\n", "200 400"},
	} {
		t.Run(name, func(t *testing.T) {
			mine := &target{T: t, address: h.address}
			conn := mine.dial()
			go func() { _, _ = io.WriteString(conn, c.request) }() // the server may close before the end
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || !strings.Contains(c.want, fmt.Sprint(response.StatusCode)) {
				t.Errorf("%s %q %v; expected %s", response.Status, body, err, c.want)
			}
			if strings.Contains(name, "chunk size") && !strings.Contains(string(body), "too long") && !strings.Contains(string(body), "invalid") {
				t.Errorf("the handler took it for a body: %s", body)
			}
			if name == "a length beside chunks" && response.StatusCode == http.StatusOK && string(body) != "POST 0 <nil>" {
				t.Errorf("the length counts, though there are chunks: %s", body)
			}
			mine.works()
		})
	}
}

// TestSlowHeaders sends headers, or the greeting of TLS, byte by byte and without end:
// the connection is closed.
func TestSlowHeaders(t *testing.T) {
	claims.Hold(t, "C9")
	for name, c := range map[string]struct {
		begin     string
		encrypted bool
	}{"headers": {"GET / HTTP/1.1\r\nHost: a\r\nX-", false}, "the greeting": {"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc\x03\x03", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newTarget(t, c.encrypted, 3*time.Second) // the ordinary client has as long
			conn, err := net.Dial("tcp", h.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_, _ = io.Copy(io.Discard, conn)
			}()
			_, err = io.WriteString(conn, c.begin)
			for err == nil {
				select {
				case <-closed:
					err = net.ErrClosed
				case <-time.After(10 * time.Millisecond):
					_, err = io.WriteString(conn, "x")
				}
			}
			h.works()
		})
	}
}
