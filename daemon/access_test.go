package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/claims"
)

func TestTokenFile(t *testing.T) {
	claims.Hold(t, "C16")
	token := access.NewToken()
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{
		token: "", token + "\n": "", "  " + token + "\r\nmore\n": "",
		"": "shorter than", "short\n": "shorter than", "\n" + token: "shorter than",
		strings.Repeat("a b", 20): "not a token", strings.Repeat("ä", 40): "not a token", strings.Repeat("a", 5000): "not a token", strings.Repeat("a:", 40): "not a token",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		digest, err := digestOf(config.Token{TokenFile: file})
		if want == "" && (err != nil || digest != access.DigestOf(token)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, %v", text, digest, err)
		}
	}
	dir := t.TempDir()
	_, err := openListeners(&config.Config{StateDir: dir, API: config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "s"), Tokens: []config.Token{{Name: "farm", TokenFile: dir + "/none"}}}}, nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "token farm") {
		t.Errorf("without the file: %v", err)
	}
}

// TestReloadOfAccess: what a reload says of tokens is what the next handshake does.
func TestReloadOfAccess(t *testing.T) {
	claims.Hold(t, "C15")
	l := &listeners{admission: admission{gate: new(access.Gate), browsers: new(api.Browsers)}}
	started := &config.Config{API: config.API{TLS: &config.TLS{ClientCAFile: "/ca", Clients: []config.TLSClient{{Name: "alice", Scopes: []string{"read"}}}}}}
	r := &reloader{started: started, listeners: l}
	if err := l.setAccess(started.API); err != nil || !l.certificates.Load() {
		t.Fatalf("at the start a certificate is needed: %v, %v", l.certificates.Load(), err)
	}
	token := config.Token{Name: "farm", Hash: access.DigestOf("t").String(), Scopes: []string{"read"}}
	proxies := &config.TrustedProxies{Addresses: []string{"10.0.0.1"}, UserHeader: "X-User", Scopes: []string{"read"}}
	bob := &config.TLS{ClientCAFile: "/ca", Clients: []config.TLSClient{{Name: "bob", Scopes: []string{"read"}}}}
	for _, c := range []struct {
		name string
		api  config.API
		want bool
	}{
		{"tokens", config.API{TLS: bob, Tokens: []config.Token{token}}, false},
		{"none again", config.API{TLS: bob}, true},
		{"a proxy", config.API{TLS: bob, TrustedProxies: proxies}, false},
	} {
		if err := l.setAccess(r.rules(&config.Config{API: c.api})); err != nil || l.certificates.Load() != c.want {
			t.Errorf("%s: a certificate is needed: %v, %v", c.name, l.certificates.Load(), err)
		}
		request := httptest.NewRequest("GET", "/status", nil)
		for name, known := range map[string]bool{"alice": false, "bob": true} {
			request.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{name}}}}}
			if _, err := l.gate.Identify(request); (err == nil) != known {
				t.Errorf("%s: %s: %v", c.name, name, err)
			}
		}
	}
}
