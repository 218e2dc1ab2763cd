package api

import (
	"encoding/json"
	"net/http"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// sessionServer lets people sign in and out with a browser.
type sessionServer struct {
	*gatekeeper
	bodyLimits
}

// GetSession answers GET /session: who the caller is. An unknown caller is not an error:
// a page asks in order to offer signing in.
func (s *sessionServer) GetSession(w http.ResponseWriter, r *http.Request) {
	caller, err := s.gate.Identify(r)
	if err != nil {
		s.answer(w, r, http.StatusOK, Session{Scopes: []string{}})
		return
	}
	s.answer(w, r, http.StatusOK, sessionOf(caller))
}

// SignIn answers POST /session.
func (s *sessionServer) SignIn(w http.ResponseWriter, r *http.Request) {
	if s.browsers.Foreign(r) {
		s.refuse(r, access.Caller{}, errForeignPage)
		s.fail(w, r, errForeignPage)
		return
	}
	room := lease{of: s.bodies}
	defer room.giveBack()
	body, err := readBody(w, r, maxSignIn, &room)
	var request SignInRequest
	if err == nil && json.Unmarshal(body, &request) != nil || err == nil && request.Token == "" {
		err = &job.Invalid{Field: "token", Problem: "this field is required"}
	}
	var caller access.Caller
	var cookie *http.Cookie
	if err == nil {
		caller, cookie, err = s.gate.SignIn(r, request.Token)
	}
	if err != nil {
		s.refuse(r, caller, err)
		s.fail(w, r, err)
		return
	}
	http.SetCookie(w, cookie)
	s.answer(w, r, http.StatusOK, sessionOf(caller))
}

// SignOut answers DELETE /session.
func (s *sessionServer) SignOut(w http.ResponseWriter, r *http.Request) {
	if s.browsers.Foreign(r) {
		s.fail(w, r, errForeignPage)
		return
	}
	http.SetCookie(w, s.gate.SignOut(r))
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// maxSignIn bounds the body of a request to sign in, in bytes.
const maxSignIn = 16 << 10

func sessionOf(caller access.Caller) Session {
	session := Session{Name: &caller.Name, Scopes: []string{}, Tenant: orNull(caller.Tenant)}
	for _, scope := range caller.Scopes {
		session.Scopes = append(session.Scopes, string(scope))
	}
	return session
}
