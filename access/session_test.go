package access

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
)

// TestSessionsEnd, in each of the ways in which they do.
func TestSessionsEnd(t *testing.T) {
	claims.Hold(t, "B4")
	known := Config{Tokens: []Token{{Digest: DigestOf("t"), Caller: Caller{Name: "ada", Scopes: []Scope{Read}}}}}
	now := time.Now()
	open := func() (*Gate, *http.Request) {
		g := NewGate(known)
		g.sessions.now = func() time.Time { return now }
		r := httptest.NewRequest("POST", "https://shepherd.example/session", nil)
		caller, cookie, err := g.SignIn(r, "t")
		if err != nil || caller.Name != "ada" || !cookie.Secure {
			t.Fatalf("%+v, %+v, %v", caller, cookie, err)
		}
		r = httptest.NewRequest("GET", "/status", nil)
		r.AddCookie(cookie)
		if caller, err := g.Identify(r); err != nil || caller.Name != "ada" || !caller.Ambient {
			t.Fatalf("%+v, %v", caller, err)
		}
		return g, r
	}
	for name, end := range map[string]func(*Gate, *http.Request){
		"idle":       func(*Gate, *http.Request) { now = now.Add(SessionIdle + time.Second) },
		"signed out": func(g *Gate, r *http.Request) { g.SignOut(r) },
		"the token is gone": func(g *Gate, _ *http.Request) {
			g.Set(Config{Tokens: []Token{{Digest: DigestOf("u"), Caller: Caller{Name: "other"}}}})
		},
		"old": func(g *Gate, r *http.Request) {
			for range int(SessionLife/SessionIdle) * 2 {
				now = now.Add(SessionIdle / 2)
				_, _ = g.Identify(r) // keeps it from being idle
			}
			now = now.Add(time.Second)
		},
	} {
		g, r := open()
		end(g, r)
		if caller, err := g.Identify(r); err == nil {
			t.Errorf("%s: %+v", name, caller)
		}
	}
	// A reload that keeps the token keeps the session.
	g, r := open()
	g.Set(known)
	if _, err := g.Identify(r); err != nil {
		t.Error(err)
	}
	if _, _, err := NewGate(Config{}).SignIn(r, "t"); err == nil {
		t.Error("signed in where there are no tokens")
	}
}
