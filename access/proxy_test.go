package access

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
)

func TestTrustedProxies(t *testing.T) {
	claims.Hold(t, "B5")
	proxy := &Proxy{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("::1/128")}, Header: "X-Forwarded-User",
		Scopes: []Scope{Read}, Users: []ProxyUser{{Name: "boss", Caller: Caller{Scopes: Scopes()}}},
	}
	gate := NewGate(Config{Proxy: proxy})
	listed := *proxy
	listed.Scopes = nil
	onlyListed := NewGate(Config{Proxy: &listed})
	for _, c := range []struct {
		name    string
		gate    *Gate
		remote  string
		headers http.Header
		want    string
		may     Scope
	}{
		{"by the proxy", gate, "10.1.2.3:999", http.Header{"X-Forwarded-User": {"ada"}}, "ada", Read},
		{"a listed user", gate, "[::1]:999", http.Header{"X-Forwarded-User": {"boss"}}, "boss", Admin},
		{"past the proxy", gate, "10.2.0.1:999", http.Header{"X-Forwarded-User": {"boss"}}, "", ""},
		{"no user", gate, "10.1.2.3:999", nil, "", ""},
		{"an empty user", gate, "10.1.2.3:999", http.Header{"X-Forwarded-User": {" "}}, "", ""},
		{"two users", gate, "10.1.2.3:999", http.Header{"X-Forwarded-User": {"ada", "boss"}}, "", ""},
		{"a user that is not listed", onlyListed, "10.1.2.3:999", http.Header{"X-Forwarded-User": {"ada"}}, "", ""},
		{"a user that is", onlyListed, "10.1.2.3:999", http.Header{"X-Forwarded-User": {"boss"}}, "boss", Admin},
	} {
		r := httptest.NewRequest("GET", "/status", nil)
		r.RemoteAddr = c.remote
		r.Header = c.headers
		caller, err := c.gate.Identify(r)
		if caller.Name != c.want || (err == nil) != (c.want != "") || err == nil && (!caller.May(c.may) || !caller.Ambient) {
			t.Errorf("%s: %+v, %v", c.name, caller, err)
		}
	}
	for forwarded, want := range map[string]string{
		"": "10.1.2.3", "192.0.2.7": "192.0.2.7", "6.6.6.6, 192.0.2.7, 10.1.9.9": "192.0.2.7", "192.0.2.7, nonsense": "10.1.2.3",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = "10.1.2.3:999"
		r.Header.Set("X-Forwarded-For", forwarded)
		if got := gate.ClientAddress(r); got != want {
			t.Errorf("%q: %s, want %s", forwarded, got, want)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "192.0.2.1:999"
	r.Header.Set("X-Forwarded-For", "6.6.6.6")
	if got := gate.ClientAddress(r); got != "192.0.2.1:999" {
		t.Errorf("past the proxy: %s", got)
	}
}
