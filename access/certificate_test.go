package access

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
)

func name(common string) pkix.Name { return pkix.Name{CommonName: common} }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = sign(t, nil, &x509.Certificate{Subject: name("authority"), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func sign(t *testing.T, by *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// pair is a certificate for a name as tls has it.
func (a *authority) pair(t *testing.T, name string, usage x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	cert, key := sign(t, a, &x509.Certificate{DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// put writes a file as those who renew certificates do: beside, then in its place.
func put(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) putPair(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	p := a.pair(t, name, x509.ExtKeyUsageServerAuth)
	key, err := x509.MarshalPKCS8PrivateKey(p.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "key"), "PRIVATE KEY", key)
	put(t, filepath.Join(dir, "cert"), "CERTIFICATE", p.Certificate[0])
	return p
}

// served serves the caller's name by TLS.
func served(t *testing.T, config *tls.Config, gate *Gate) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := gate.Identify(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		io.WriteString(w, caller.Name)
	}))
	server.TLS = config
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// ask answers with what is served, by a connection of its own.
func ask(t *testing.T, url string, roots *authority, version uint16, certs ...tls.Certificate) (string, *x509.Certificate, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(roots.cert)
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MaxVersion: version, MinVersion: tls.VersionTLS10, Certificates: certs}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return "", nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), response.TLS.PeerCertificates[0], err
}

func TestMutualTLS(t *testing.T) {
	claims.Hold(t, "C7")
	ours, clients, strangers := newAuthority(t), newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	ours.putPair(t, dir, "localhost")
	put(t, filepath.Join(dir, "clients"), "CERTIFICATE", clients.cert.Raw)
	gate := NewGate(Config{ClientCA: true, Certificates: []Certificate{{Subject: "alice", Caller: Caller{Name: "alice"}}}})
	for _, required := range []bool{true, false} {
		config, err := TLS{CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), ClientCAFile: filepath.Join(dir, "clients"), Required: func() bool { return required }}.Server()
		if err != nil {
			t.Fatal(err)
		}
		url := served(t, config, gate)
		alice, bob := clients.pair(t, "alice", x509.ExtKeyUsageClientAuth), clients.pair(t, "bob", x509.ExtKeyUsageClientAuth)
		if got, _, err := ask(t, url, ours, 0, alice); err != nil || got != "alice" {
			t.Errorf("alice: %q, %v", got, err)
		}
		if got, _, err := ask(t, url, ours, 0, bob); err != nil || !strings.Contains(got, "not among those") {
			t.Errorf("bob: %q, %v", got, err)
		}
		// Its authority has the name of the right one, so that a client shows it.
		forged := strangers.pair(t, "alice", x509.ExtKeyUsageClientAuth)
		for who, certs := range map[string][]tls.Certificate{"nobody": nil, "a stranger who says alice": {forged}, "a server": {clients.pair(t, "alice", x509.ExtKeyUsageServerAuth)}} {
			got, _, err := ask(t, url, ours, 0, certs...)
			if err == nil && (required || got == "alice") {
				t.Errorf("%s (required %t): %q", who, required, got)
			}
		}
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
			if _, _, err := ask(t, url, ours, version, alice); err == nil {
				t.Errorf("%s was spoken", tls.VersionName(version))
			}
		}
		if got, _, err := ask(t, url, ours, tls.VersionTLS12, alice); err != nil || got != "alice" {
			t.Errorf("TLS 1.2: %q, %v", got, err)
		}
	}
}

func TestRenewal(t *testing.T) {
	claims.Hold(t, "C7")
	ours, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	first := ours.putPair(t, dir, "localhost")
	put(t, filepath.Join(dir, "clients"), "CERTIFICATE", clients.cert.Raw)
	var log bytes.Buffer
	f := &files{TLS: TLS{
		CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), ClientCAFile: filepath.Join(dir, "clients"),
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}}
	if err := f.read(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	served := func(after time.Duration) *x509.Certificate {
		now = now.Add(after)
		config, _ := f.current(now)
		return config.Certificates[0].Leaf
	}
	if !served(0).Equal(first.Leaf) || !served(time.Minute).Equal(first.Leaf) || log.Len() > 0 {
		t.Errorf("nothing changed: %s", &log)
	}
	second := ours.putPair(t, dir, "localhost")
	if !served(time.Millisecond).Equal(first.Leaf) {
		t.Error("the files were looked at within the time")
	}
	if !served(time.Minute).Equal(second.Leaf) || !strings.Contains(log.String(), "Reloaded the API's certificates") {
		t.Errorf("renewed: %s", &log)
	}
	// Half a renewal: the key is not the certificate's.
	log.Reset()
	third := ours.pair(t, "localhost", x509.ExtKeyUsageServerAuth)
	put(t, filepath.Join(dir, "cert"), "CERTIFICATE", third.Certificate[0])
	if !served(time.Minute).Equal(second.Leaf) || !strings.Contains(log.String(), "the previous ones stay in use") {
		t.Errorf("half: %s", &log)
	}
	key, err := x509.MarshalPKCS8PrivateKey(third.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "key"), "PRIVATE KEY", key)
	if !served(time.Minute).Equal(third.Leaf) {
		t.Error("the other half was not seen")
	}
	// The authorities change: who came with the old one's certificate stays out.
	put(t, filepath.Join(dir, "clients"), "CERTIFICATE", others.cert.Raw)
	now = now.Add(time.Minute)
	config, _ := f.current(now)
	pool := config.ClientCAs
	alice := clients.pair(t, "alice", x509.ExtKeyUsageClientAuth)
	if _, err := alice.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a certificate of an authority that was taken away")
	}
}

func TestFilesThatAreNoCertificates(t *testing.T) {
	ours := newAuthority(t)
	dir := t.TempDir()
	ours.putPair(t, dir, "localhost")
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for _, files := range []TLS{
		{CertFile: cert, KeyFile: filepath.Join(dir, "none")}, {CertFile: key, KeyFile: key}, {CertFile: cert, KeyFile: key, ClientCAFile: key},
		{CertFile: cert, KeyFile: key, ClientCAFile: filepath.Join(dir, "none")},
	} {
		if _, err := files.Server(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%+v: %v", files, err)
		}
	}
}
