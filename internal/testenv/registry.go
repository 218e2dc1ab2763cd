package testenv

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// RegistryConfig configures a registry.
type RegistryConfig struct {
	// Username and Password are required from clients if Username is not empty,
	// by basic authentication, or, with Token, by the registry's token server.
	Username, Password string
	Token              bool
	// TLS serves HTTPS with a certificate of an authority of its own.
	TLS bool
	// ClientCertificate requires, with TLS, a client certificate of the same authority.
	ClientCertificate bool
}

// Registry is an OCI registry in memory that counts requests and injects faults.
type Registry struct {
	// Host is HOST:PORT, URL is that with the scheme.
	Host, URL string
	// CAFile has the authority's certificate, with TLS.
	CAFile string
	// ClientCertFile and ClientKeyFile are for clients, with ClientCertificate.
	ClientCertFile, ClientKeyFile string

	cfg   RegistryConfig
	inner http.Handler

	mu     sync.Mutex
	fault  func(*http.Request) *RegistryFault
	tokens map[string]bool

	counting sync.Mutex
	requests []*RegistryRequest
}

// RegistryRequest is one request that was answered.
type RegistryRequest struct {
	Method, Path string
	Status       int
	Bytes        int64 // of the body sent
}

// RegistryFault is a fault that is injected into a request.
type RegistryFault struct {
	// Status is answered, if not 0, with Header.
	Status int
	Header http.Header
	// Text is the body with Status, if not empty.
	Text string
	// Body is answered, if not nil, with Header.
	Body []byte
	// CutAfter breaks the connection after that many bytes of the body, if above 0; if
	// below 0, before any answer.
	CutAfter int64
	// Hold, if not nil, delays the answer until it is closed.
	Hold <-chan struct{}
	// Pause delays every 32 KiB of the body.
	Pause time.Duration
}

// StartRegistry starts a registry that ends with the test.
func StartRegistry(t testing.TB, cfg RegistryConfig) *Registry {
	t.Helper()
	r := &Registry{
		cfg:    cfg,
		inner:  registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		tokens: map[string]bool{},
	}
	server := httptest.NewUnstartedServer(r)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if cfg.TLS {
		server.TLS = r.certificate(t)
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	r.URL, r.Host = server.URL, server.Listener.Addr().String()
	return r
}

// Push stores an image or an index under NAME:TAG, or NAME@DIGEST, without authentication,
// counting and faults.
func (r *Registry) Push(t testing.TB, ref string, what remote.Taggable) {
	t.Helper()
	reference, err := name.ParseReference(r.Host+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	direct := remote.WithTransport(direct{r.inner})
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(reference, what, direct)
	case v1.ImageIndex:
		err = remote.WriteIndex(reference, what, direct)
	default:
		err = fmt.Errorf("a %T cannot be pushed", what)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

// direct passes requests to a handler without a network.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	served := req.Clone(req.Context())
	if served.Body == nil {
		served.Body = http.NoBody // handlers never get nil
	}
	d.handler.ServeHTTP(rec, served)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// SetFault calls f for every request from now on; there is no fault if f is nil or returns nil.
// One request at a time calls it.
func (r *Registry) SetFault(f func(*http.Request) *RegistryFault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// Requests returns the requests that were answered since the last call, with what their
// clients may have received by now.
func (r *Registry) Requests() []RegistryRequest {
	r.counting.Lock()
	defer r.counting.Unlock()
	var all []RegistryRequest
	for _, one := range r.requests {
		all = append(all, *one)
	}
	r.requests = nil
	return all
}

// note adds an answer, or more of it, to the requests.
func (r *Registry) note(a *answer, bytes int64) {
	r.counting.Lock()
	defer r.counting.Unlock()
	if !slices.Contains(r.requests, a.noted) { // none is, or it was returned before
		if a.noted != nil && bytes <= 0 {
			return
		}
		a.noted = &RegistryRequest{Method: a.request.Method, Path: a.request.URL.Path, Status: a.status}
		r.requests = append(r.requests, a.noted)
	}
	a.noted.Bytes += bytes
}

// BlobBytes counts the bytes of blobs sent by each request of the list to
// digest, or to any blob where it is empty.
func BlobBytes(requests []RegistryRequest, digest string) (n int64) {
	for _, req := range requests {
		if strings.Contains(req.Path, "/blobs/"+digest) {
			n += req.Bytes
		}
	}
	return n
}

// ServeDirect answers without authentication, counting and faults.
func (r *Registry) ServeDirect(w http.ResponseWriter, req *http.Request) { r.inner.ServeHTTP(w, req) }

// GiveToken issues a token without requiring credentials.
func (r *Registry) GiveToken() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	token := rand.Text()
	r.tokens[token] = true
	return token
}

// RevokeTokens revokes the tokens issued so far.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// SetPassword changes the password.
func (r *Registry) SetPassword(password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cfg.Password = password
	clear(r.tokens)
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	var fault RegistryFault
	if r.fault != nil {
		if f := r.fault(req); f != nil {
			fault = *f
		}
	}
	r.mu.Unlock()

	out := &answer{ResponseWriter: w, registry: r, request: req, fault: fault, status: http.StatusOK}
	defer func() { r.note(out, 0) }() // where there was no body
	if fault.Hold != nil {
		select {
		case <-fault.Hold:
		case <-req.Context().Done():
			out.status = 0
			panic(http.ErrAbortHandler)
		}
	}
	switch {
	case fault.CutAfter < 0:
		out.status = 0
		panic(http.ErrAbortHandler)
	case fault.Status != 0:
		for key, values := range fault.Header {
			w.Header()[key] = values
		}
		http.Error(out, cmp.Or(fault.Text, http.StatusText(fault.Status)), fault.Status)
	case fault.Body != nil:
		for key, values := range fault.Header {
			w.Header()[key] = values
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(fault.Body)))
		out.Write(fault.Body)
	case req.URL.Path == "/token":
		r.giveToken(out, req)
	case !r.authorized(req):
		r.challenge(out, req)
	default:
		r.serve(out, req)
	}
}

// serve answers requests for ranges up to the end of a blob, which the registry inside does not
// support.
func (r *Registry) serve(out *answer, req *http.Request) {
	var offset int64
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &offset); err == nil && strings.HasSuffix(req.Header.Get("Range"), "-") {
		req.Header.Del("Range")
		out.skip, out.offset = offset, offset
	}
	r.inner.ServeHTTP(out, req)
}

func (r *Registry) authorized(req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Username == "" {
		return true
	}
	if r.cfg.Token {
		scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
		return strings.EqualFold(scheme, "bearer") && r.tokens[token]
	}
	user, password, _ := req.BasicAuth()
	return user == r.cfg.Username && password == r.cfg.Password
}

func (r *Registry) challenge(w http.ResponseWriter, req *http.Request) {
	if r.cfg.Token {
		repository, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
		repository, _, _ = strings.Cut(repository, "/blobs/")
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull"`, r.URL, repository))
	} else {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	}
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
}

// giveToken is the token server. It supports GET with basic authentication, and POST with a form.
func (r *Registry) giveToken(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.FormValue("username"), req.FormValue("password")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if user != r.cfg.Username || password != r.cfg.Password {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong user or password"}]}`, http.StatusUnauthorized)
		return
	}
	token := rand.Text()
	r.tokens[token] = true
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, token, token)
}

// answer counts the bytes of a body before its client can receive them, drops its beginning
// for a range, and cuts it off for a fault.
type answer struct {
	http.ResponseWriter
	registry     *Registry
	request      *http.Request
	noted        *RegistryRequest // where it is counted
	fault        RegistryFault
	skip, offset int64
	status       int
	sent         int64
}

func (a *answer) WriteHeader(status int) {
	if a.offset > 0 && status == http.StatusOK {
		h := a.Header()
		if size, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
			status = http.StatusPartialContent
			h.Set("Content-Length", strconv.FormatInt(size-a.offset, 10))
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a.offset, size-1, size))
		}
	}
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	n := len(p)
	drop := min(a.skip, int64(len(p)))
	a.skip -= drop
	p = p[drop:]
	for len(p) > 0 {
		part := p[:min(len(p), 32<<10)]
		cut := a.fault.CutAfter > 0 && a.sent+int64(len(part)) >= a.fault.CutAfter
		if cut {
			part = part[:a.fault.CutAfter-a.sent]
		}
		if a.fault.Pause > 0 {
			time.Sleep(a.fault.Pause)
		}
		a.registry.note(a, int64(len(part)))
		m, err := a.ResponseWriter.Write(part)
		a.sent += int64(m)
		if err != nil {
			a.registry.note(a, int64(m-len(part)))
			return 0, err
		}
		if cut {
			a.ResponseWriter.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		p = p[len(part):]
	}
	return n, nil
}

// certificate creates an authority and a certificate for loopback.
func (r *Registry) certificate(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shepherd test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r.CAFile = write("ca.pem", "CERTIFICATE", der)
	cfg := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	if !r.cfg.ClientCertificate {
		return cfg
	}
	client := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "shepherd test client"},
		NotBefore: template.NotBefore, NotAfter: template.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	clientDER, err := x509.CreateCertificate(rand.Reader, client, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	r.ClientCertFile, r.ClientKeyFile = write("client.pem", "CERTIFICATE", clientDER), write("client.key", "PRIVATE KEY", keyDER)
	authority, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	cfg.ClientCAs.AddCert(authority)
	return cfg
}
