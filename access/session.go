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

// A session ends when it has not been used for SessionIdle, at the latest after
// SessionLife, when its token is taken out of the configuration, and with the
// daemon.
const (
	SessionIdle = 30 * time.Minute
	SessionLife = 12 * time.Hour
)

// mostSessions is how many sessions there may be at a time.
const mostSessions = 10_000

// sessions are the sessions that are open, by the digest of their secret.
type sessions struct {
	mu   sync.Mutex
	open map[Digest]*session
	now  func() time.Time // nil is time.Now
}

// session is one browser that has signed in.
type session struct {
	token  Digest // it has signed in with
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

// SignIn opens a session for the holder of a token, and returns its cookie: the
// page's scripts cannot read it, and browsers send it only with requests that this
// origin's own pages make. The error is *Unknown, *Refused where the daemon has no
// tokens, or *TooMany.
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

// SignOut ends the session that a request belongs to, if there is one, and returns
// the cookie that removes it from the browser.
func (g *Gate) SignOut(r *http.Request) *http.Cookie {
	if c, err := r.Cookie(SessionCookie); err == nil {
		g.sessions.remove(DigestOf(c.Value))
	}
	gone := cookie(g.rules(), r, "")
	gone.MaxAge = -1
	return gone
}

// cookie is sent back by the browser until it is closed; the session may end before.
func cookie(by *rules, r *http.Request, value string) *http.Cookie {
	secure := r.TLS != nil || by.proxy.trusts(r.RemoteAddr) && r.Header.Get("X-Forwarded-Proto") == "https"
	return &http.Cookie{Name: SessionCookie, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: secure}
}

// add opens a session, unless there are too many.
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

// caller is the caller of a request with a session's cookie. The session's token has
// to be in the configuration still.
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
