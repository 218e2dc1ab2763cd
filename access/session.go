package access

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"sync"
	"time"
)

// SessionCookie is the name of the cookie that holds a session.
const SessionCookie = "shepherd_session"

// A session ends when it was not used for SessionIdle, SessionLife after it was opened, when
// its token is removed from the configuration, or with the daemon.
const (
	SessionIdle = 30 * time.Minute
	SessionLife = 12 * time.Hour
)

// mostSessions bounds the number of open sessions.
const mostSessions = 10_000

// sessions holds the open sessions by the digest of their secret.
type sessions struct {
	mu   sync.Mutex
	open map[Digest]*session
	now  func() time.Time // nil is time.Now
}

// session is the session of one browser.
type session struct {
	token  Digest // the token used to sign in
	opened time.Time
	used   time.Time
}

func (s *session) ended(now time.Time) bool {
	return now.Sub(s.used) > SessionIdle || now.Sub(s.opened) > SessionLife
}

func (s *sessions) time() time.Time {
	if s.now != nil {
		return s.now()
	}
	return time.Now()
}

// SignIn opens a session for the holder of a token and returns its cookie, which scripts
// cannot read and browsers send only with requests of this origin's own pages. The error is
// *Unknown, *Refused if the daemon has no tokens, or *TooMany.
func (g *Gate) SignIn(r *http.Request, token string) (Caller, *http.Cookie, error) {
	by := g.rules()
	if len(by.tokens) == 0 {
		return Caller{}, nil, &Refused{Reason: "There are no tokens to sign in with (api.tokens)"}
	}
	caller, known := Caller{}, false
	if ValidToken(token) {
		caller, known = find(by.tokens, token)
	}
	if !known {
		return Caller{}, nil, by.failed(r, &Unknown{Reason: "This token is not known here", Shown: true})
	}
	bytes := make([]byte, 32)
	rand.Read(bytes)
	secret := base64.RawURLEncoding.EncodeToString(bytes)
	if !g.sessions.add(DigestOf(secret), DigestOf(token)) {
		return Caller{}, nil, &TooMany{After: SessionIdle}
	}
	return caller, cookie(by, r, secret), nil
}

// SignOut ends the session of a request, if there is one, and returns a cookie that deletes
// the browser's.
func (g *Gate) SignOut(r *http.Request) *http.Cookie {
	if c, err := r.Cookie(SessionCookie); err == nil {
		g.sessions.remove(DigestOf(c.Value))
	}
	gone := cookie(g.rules(), r, "")
	gone.MaxAge = -1
	return gone
}

// cookie returns a cookie that lasts until the browser is closed; the session may end
// earlier.
func cookie(by *rules, r *http.Request, value string) *http.Cookie {
	secure := r.TLS != nil || by.proxy.trusts(r.RemoteAddr) && r.Header.Get("X-Forwarded-Proto") == "https"
	return &http.Cookie{Name: SessionCookie, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: secure}
}

// add opens a session. It returns false if there are too many.
func (s *sessions) add(secret, token Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.time()
	if len(s.open) >= mostSessions {
		for key, old := range s.open {
			if old.ended(now) {
				delete(s.open, key)
			}
		}
	}
	if len(s.open) >= mostSessions {
		return false
	}
	if s.open == nil {
		s.open = make(map[Digest]*session)
	}
	s.open[secret] = &session{token: token, opened: now, used: now}
	return true
}

func (s *sessions) remove(secret Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, secret)
}

// caller returns the caller of a request with a session cookie whose token is still
// configured.
func (s *sessions) caller(by *rules, r *http.Request) (Caller, bool) {
	c, err := r.Cookie(SessionCookie)
	if err != nil {
		return Caller{}, false
	}
	secret := DigestOf(c.Value)
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.open[secret]
	if open == nil {
		return Caller{}, false
	}
	now := s.time()
	if open.ended(now) {
		delete(s.open, secret)
		return Caller{}, false
	}
	for _, t := range by.tokens {
		if t.Digest == open.token {
			open.used = now
			caller := t.Caller
			caller.Ambient = true
			return caller, true
		}
	}
	delete(s.open, secret)
	return Caller{}, false
}
