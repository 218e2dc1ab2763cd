package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	goflag "flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

var update = goflag.Bool("update", false, "rewrite the golden files")

// A requester is a kind of caller: what it adds to a request.
type requester struct {
	name string
	gate string // the daemon that it asks: open, tokens, certificates or proxy
	add  func(t *testing.T, handler http.Handler, r *http.Request) *http.Request
}

func withHeaders(pairs ...string) func(*testing.T, http.Handler, *http.Request) *http.Request {
	return func(_ *testing.T, _ http.Handler, r *http.Request) *http.Request {
		for i := 0; i < len(pairs); i += 2 {
			r.Header.Set(pairs[i], pairs[i+1])
		}
		return r
	}
}

// fromAForeignPage makes a request one that a page of another origin has sent.
func fromAForeignPage(r *http.Request) *http.Request {
	r.Header.Set("Origin", "https://evil.example")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	return r
}

// withSession signs in with a token first.
func withSession(token string, foreign bool) func(*testing.T, http.Handler, *http.Request) *http.Request {
	return func(t *testing.T, handler http.Handler, r *http.Request) *http.Request {
		w := httptest.NewRecorder()
		signIn := httptest.NewRequest("POST", "http://192.0.2.1/session", strings.NewReader(`{"token": "`+token+`"}`))
		handler.ServeHTTP(w, signIn)
		cookie, err := http.ParseSetCookie(w.Header().Get("Set-Cookie"))
		if err != nil {
			t.Fatalf("sign in: %d %s", w.Code, w.Body)
		}
		r.AddCookie(cookie)
		if foreign {
			fromAForeignPage(r)
		}
		return r
	}
}

func withCertificate(name string, foreign bool) func(*testing.T, http.Handler, *http.Request) *http.Request {
	return func(_ *testing.T, _ http.Handler, r *http.Request) *http.Request {
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{DNSNames: []string{name}}}}}
		if foreign {
			fromAForeignPage(r)
		}
		return r
	}
}

// bySocket makes a request arrive as that of this process, or of a user who is
// neither root, nor the daemon's, nor in its group.
func bySocket(uid uint32, foreign bool) func(*testing.T, http.Handler, *http.Request) *http.Request {
	return func(t *testing.T, _ http.Handler, r *http.Request) *http.Request {
		r.Host = access.SocketHost
		ctx := context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Name: "/run/api.sock", Net: "unix"}))
		r = r.WithContext(access.WithPeer(ctx, access.Peer{UID: uid}))
		if foreign {
			fromAForeignPage(r)
		}
		return r
	}
}

func requesters() []requester {
	all := []requester{
		{"nobody", "open", withHeaders()},
		{"foreign page", "open", func(_ *testing.T, _ http.Handler, r *http.Request) *http.Request { return fromAForeignPage(r) }},
		{"foreign host", "open", func(_ *testing.T, _ http.Handler, r *http.Request) *http.Request {
			r.Host = "evil.example"
			return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})))
		}},
		{"nobody", "tokens", withHeaders()},
		{"wrong token", "tokens", withHeaders("Authorization", "Bearer wrong")},
		{"token submit", "tokens", withHeaders("Authorization", "Bearer writer-token")},
		{"token read", "tokens", withHeaders("Authorization", "Bearer reader-token")},
		{"token admin", "tokens", withHeaders("Authorization", "Bearer only-admin-token")},
		{"token all scopes", "tokens", withHeaders("Authorization", "Bearer admin-token")},
		{"token tenant", "tokens", withHeaders("Authorization", "Bearer wool-token")},
		{"session", "tokens", withSession("admin-token", false)},
		{"session tenant", "tokens", withSession("wool-token", false)},
		{"session foreign page", "tokens", withSession("admin-token", true)},
		{"certificate", "certificates", withCertificate("alice", false)},
		{"certificate tenant", "certificates", withCertificate("bob", false)},
		{"certificate unlisted", "certificates", withCertificate("eve", false)},
		{"certificate foreign page", "certificates", withCertificate("alice", true)},
		{"proxy user", "proxy", withHeaders("X-User", "ada")},
		{"proxy listed user", "proxy", withHeaders("X-User", "boss")},
		{"proxy no user", "proxy", withHeaders()},
		{"past the proxy", "proxy", func(_ *testing.T, _ http.Handler, r *http.Request) *http.Request {
			r.RemoteAddr = "198.51.100.1:1"
			r.Header.Set("X-User", "boss")
			return r
		}},
		{"socket administrator", "tokens", bySocket(0, false)},
		{"socket other user", "tokens", bySocket(4242, false)},
		{"socket foreign page", "tokens", bySocket(0, true)},
	}
	return all
}

func gates() map[string]*access.Gate {
	known := access.Config{Local: access.Local{UID: 0}}
	for token, caller := range tokens {
		known.Tokens = append(known.Tokens, access.Token{Digest: access.DigestOf(token), Caller: caller})
	}
	known.Tokens = append(known.Tokens, access.Token{Digest: access.DigestOf("only-admin-token"), Caller: access.Caller{Name: "admin", Scopes: []access.Scope{access.Admin}}})
	return map[string]*access.Gate{
		"open":   access.NewGate(access.Config{}),
		"tokens": access.NewGate(known),
		"certificates": access.NewGate(access.Config{ClientCA: true, Certificates: []access.Certificate{
			{Subject: "alice", Caller: access.Caller{Name: "alice", Scopes: access.Scopes(), Ambient: true}},
			{Subject: "bob", Caller: access.Caller{Name: "bob", Scopes: []access.Scope{access.Submit, access.Read}, Tenant: "wool", Ambient: true}},
		}}),
		"proxy": access.NewGate(access.Config{Proxy: &access.Proxy{
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Header: "X-User", Scopes: []access.Scope{access.Read},
			Users: []access.ProxyUser{{Name: "boss", Caller: access.Caller{Scopes: access.Scopes()}}},
		}}),
	}
}

// TestAuthorizationMatrix asks for every operation of the contract as every kind of
// caller, and compares who is let in with the table in testdata/authorization.txt. The
// rows are the contract's operations, the columns the callers, and no cell is left out:
//
//   - let in   401, 403, 421: refused so
func TestAuthorizationMatrix(t *testing.T) {
	claims.Hold(t, "C3")
	contract, err := loadContract()
	if err != nil {
		t.Fatal(err)
	}
	var operations []string
	for path, item := range contract.Paths.Map() {
		for method := range item.Operations() {
			operations = append(operations, method+" "+path)
		}
	}
	slices.Sort(operations)
	if len(operations) != len(needs) {
		t.Errorf("%d operations, %d needs", len(operations), len(needs))
	}
	var b strings.Builder
	for i, who := range requesters() {
		fmt.Fprintf(&b, "%2d  %s (daemon: %s)\n", i+1, who.name, who.gate)
	}
	fmt.Fprintf(&b, "\n%-36s", "")
	for i := range requesters() {
		fmt.Fprintf(&b, " %3d", i+1)
	}
	b.WriteString("\n")
	for _, operation := range operations {
		fmt.Fprintf(&b, "%-36s", operation)
		method, path, _ := strings.Cut(operation, " ")
		for _, who := range requesters() {
			// A daemon of its own for each cell: refusals of one caller are no other's.
			service := newFake()
			j := service.add("a", job.Done)
			j.outputs["output"], j.inputs["input"], j.tenant = []byte("x"), []byte("y"), "wool"
			service.sheep = []job.Sheep{{Name: "s", Type: "bare"}}
			handler := New(Config{Service: service, Gate: gates()[who.gate], Browsers: NewBrowsers(BrowserConfig{Origins: []string{"*"}})})
			r := httptest.NewRequest(method, "http://192.0.2.1"+addressOf(path), strings.NewReader(""))
			r.RemoteAddr = "192.0.2.9:1234"
			if path == "/events" || path == "/flock" { // which do not end by themselves
				ctx, leave := context.WithCancel(r.Context())
				leave()
				r = r.WithContext(ctx)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, who.add(t, handler, r))
			cell := "+"
			switch w.Code {
			case http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest:
				cell = fmt.Sprint(w.Code)
			case http.StatusInternalServerError, http.StatusTooManyRequests:
				t.Errorf("%s as %s: %d %s", operation, who.name, w.Code, w.Body)
			}
			fmt.Fprintf(&b, " %3s", cell)
		}
		b.WriteString("\n")
	}
	golden := filepath.Join("testdata", "authorization.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || b.String() != string(want) {
		t.Errorf("%v: who is let in is\n%s\nand is to be\n%s", err, b.String(), want)
	}
	// The table itself is what the needs say, so that nobody rewrites a wrong one.
	columns := requesters()
	for line := range strings.Lines(b.String()) {
		method, rest, ok := strings.Cut(line, " /")
		if !ok || !slices.Contains([]string{"GET", "POST", "DELETE"}, method) {
			continue
		}
		fields := strings.Fields(rest)
		needed := needs[method+" /"+fields[0]]
		scopes := map[string]access.Caller{
			"nobody open": {Scopes: []access.Scope{access.Submit, access.Read}}, "token submit tokens": {Scopes: []access.Scope{access.Submit}},
			"token read tokens": {Scopes: []access.Scope{access.Read}}, "token admin tokens": {Scopes: []access.Scope{access.Admin}},
			"token all scopes tokens": {Scopes: access.Scopes()}, "session tokens": {Scopes: access.Scopes()}, "certificate certificates": {Scopes: access.Scopes()},
			"token tenant tokens": {Scopes: []access.Scope{access.Submit, access.Read}, Tenant: "wool"}, "session tenant tokens": {Scopes: []access.Scope{access.Submit, access.Read}, Tenant: "wool"},
			"certificate tenant certificates": {Scopes: []access.Scope{access.Submit, access.Read}, Tenant: "wool"},
			"proxy user proxy":                {Scopes: []access.Scope{access.Read}}, "proxy listed user proxy": {Scopes: access.Scopes()}, "socket administrator tokens": {Scopes: access.Scopes()},
		}
		checked := 0
		for i, who := range columns {
			caller, known := scopes[who.name+" "+who.gate]
			if !known || strings.HasSuffix(rest, "/session") || fields[0] == "session" {
				continue
			}
			checked++
			allowed := needed.scope == "" || caller.May(needed.scope) && !(needed.whole && caller.Tenant != "")
			if allowed != (fields[i+1] == "+") {
				t.Errorf("%s /%s as %s: %s, though the needs say %v", method, fields[0], who.name, fields[i+1], allowed)
			}
		}
		if checked != len(scopes) && fields[0] != "session" {
			t.Errorf("only %d of %d callers are compared", checked, len(scopes))
		}
	}
}
