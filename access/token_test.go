package access

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		token := NewToken()
		if seen[token] || len(token) != len("shepherd_")+43 {
			t.Fatalf("made %q", token)
		}
		seen[token] = true
		digest, err := ParseDigest(DigestOf(token).String())
		if err != nil || digest != DigestOf(token) {
			t.Errorf("%v, %v", digest, err)
		}
		if shown, ok := bearer("Bearer " + token); !ok || shown != token {
			t.Errorf("its header is read as %q", shown)
		}
	}
	// What sha256sum says.
	if got := DigestOf("abc").String(); got != "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Error(got)
	}
}

func TestParseDigest(t *testing.T) {
	for _, text := range []string{
		"", "sha256:", "shepherd_hunter2", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a", "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015adff",
		"sha256:za7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "sha512:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
	} {
		if _, err := ParseDigest(text); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer abc": "abc", "BEARER  abc ": "abc", "Bearer a-b_c.d~e+f/g==": "a-b_c.d~e+f/g==",
		"": "", "Bearer": "", "Bearer ": "", "Bearer a b": "", "Basic abc": "", "Bearerabc": "", "Bearer ä": "", "Bearer a,b": "", "Bearer\tabc": "",
		"Bearer " + strings.Repeat("a", 5000): "",
	} {
		if got, ok := bearer(header); got != want || ok != (want != "") {
			t.Errorf("%.40q: %q, %t", header, got, ok)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, header := range []string{"Bearer abc", "bearer  abc ", "Basic YTpi", "Bearer ", "Bearer a b", "\x00", "Bearer " + NewToken()} {
		f.Add(header)
	}
	gate := NewGate(Config{Tokens: []Token{{Digest: DigestOf("the-token"), Caller: Caller{Name: "one"}}}})
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = []string{header}
		caller, err := gate.identify(r)
		scheme, rest, _ := strings.Cut(header, " ")
		right := strings.EqualFold(scheme, "bearer") && strings.Trim(rest, " ") == "the-token" && len(header) <= longestToken
		if (err == nil) != right || right && caller.Name != "one" {
			t.Errorf("%q: %+v, %v", header, caller, err)
		}
		if err != nil && len(header) > 12 && strings.Contains(err.Error(), header) {
			t.Errorf("the error repeats %q", header)
		}
	})
}

// identify is Identify without its limits.
func (g *Gate) identify(r *http.Request) (Caller, error) { return g.callerOf(g.rules(), r) }

func TestGate(t *testing.T) {
	token := Token{Digest: DigestOf("t"), Caller: Caller{Name: "by token", Scopes: []Scope{Read}}}
	other := Token{Digest: DigestOf("u"), Caller: Caller{Name: "other", Scopes: []Scope{Submit}, Tenant: "wool"}}
	alice := Certificate{Subject: "alice@example.com", Caller: Caller{Name: "alice", Ambient: true, Scopes: []Scope{Admin}}}
	cert := func(c x509.Certificate) func(*http.Request) {
		return func(r *http.Request) { r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{&c}}} }
	}
	unverified := func(r *http.Request) {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{EmailAddresses: []string{"alice@example.com"}}}}
	}
	header := func(values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["Authorization"] = values }
	}
	both := func(fs ...func(*http.Request)) func(*http.Request) {
		return func(r *http.Request) {
			for _, f := range fs {
				f(r)
			}
		}
	}
	nothing := func(*http.Request) {}
	tokens, certs := Config{Tokens: []Token{token, other}}, Config{ClientCA: true}
	listed := Config{ClientCA: true, Certificates: []Certificate{alice}, Tokens: []Token{token}}
	for _, c := range []struct {
		name   string
		config Config
		ask    func(*http.Request)
		caller string // or the type of the error
	}{
		{"open", Config{}, nothing, "anonymous"},
		{"open, with a header", Config{}, header("Bearer t"), "anonymous"},
		{"no token", tokens, nothing, "unknown"},
		{"token", tokens, header("Bearer t"), "by token"},
		{"the other token", tokens, header("Bearer u"), "other"},
		{"wrong token", tokens, header("Bearer v"), "unknown"},
		{"the token's hash", tokens, header("Bearer " + DigestOf("t").String()), "unknown"},
		{"two headers", tokens, header("Bearer t", "Bearer t"), "unknown"},
		{"an empty header", tokens, header(""), "unknown"},
		{"certificate, where none is asked for", tokens, cert(x509.Certificate{DNSNames: []string{"d"}}), "refused"},
		{"any certificate", certs, cert(x509.Certificate{DNSNames: []string{"d"}}), "d"},
		{"no certificate", certs, nothing, "unknown"},
		{"one that was not verified", listed, unverified, "unknown"},
		{"one that is listed", listed, cert(x509.Certificate{EmailAddresses: []string{"bob@example.com", "alice@example.com"}}), "alice"},
		{"one that is not listed", listed, cert(x509.Certificate{EmailAddresses: []string{"bob@example.com"}}), "refused"},
		{"the name as a common name, beside others", listed, cert(x509.Certificate{DNSNames: []string{"d"}, Subject: name("alice@example.com")}), "refused"},
		{"the name as the only common name", listed, cert(x509.Certificate{Subject: name("alice@example.com")}), "alice"},
		{"a token goes before the certificate", listed, both(header("Bearer t"), cert(x509.Certificate{Subject: name("alice@example.com")})), "by token"},
		{"a wrong token beside a certificate", listed, both(header("Bearer v"), cert(x509.Certificate{Subject: name("alice@example.com")})), "unknown"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		c.ask(r)
		caller, err := NewGate(c.config).Identify(r)
		got := caller.Name
		switch err.(type) {
		case *Unknown:
			got = "unknown"
		case *Refused:
			got = "refused"
		}
		if got != c.caller || err != nil && caller.Name != "" {
			t.Errorf("%s: %s %v, want %s", c.name, got, err, c.caller)
		}
	}
	if new(Gate).Asks() || NewGate(Config{}).Asks() || !NewGate(tokens).Asks() || !NewGate(certs).Asks() {
		t.Error("Asks is wrong")
	}
	// What is set counts from then on.
	g := NewGate(tokens)
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer t")
	g.Set(Config{Tokens: []Token{other}})
	if _, err := g.Identify(r); err == nil {
		t.Error("a token that was taken away")
	}
}

func TestAnonymousMayNotAdminister(t *testing.T) {
	caller, err := new(Gate).Identify(httptest.NewRequest("GET", "/", nil))
	if err != nil || !caller.May(Submit) || !caller.May(Read) || caller.May(Admin) || caller.Tenant != "" {
		t.Errorf("%+v, %v", caller, err)
	}
	if (Caller{}).May(Read) || From(t.Context()).May(Read) {
		t.Error("nobody may something")
	}
}
