// Package access decides who a caller is and what it may do: a caller has a name,
// scopes and, where it is one of several customers of the machine, a tenant whose
// jobs are all that it sees.
//
// A caller is identified by one of these, each in its own file: the credentials that
// the kernel has of the peer of a unix socket (peer.go), a token (token.go), the
// cookie of a session that was opened with a token (session.go), the header of a
// trusted reverse proxy (proxy.go) or a certificate (certificate.go). A Gate puts
// them together. Which scope a route needs is the API's business, not this
// package's.
package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Scope is something that a caller may do.
type Scope string

// The scopes. None includes another: a caller that may submit and look has two.
const (
	Submit Scope = "submit" // start jobs and cancel them
	Read   Scope = "read"   // see jobs, their files, and what the machine does
	Admin  Scope = "admin"  // change what the machine does and keeps
)

// Scopes lists them all.
func Scopes() []Scope { return []Scope{Submit, Read, Admin} }

// ParseScope reads a scope's name.
func ParseScope(s string) (Scope, error) {
	if scope := Scope(s); slices.Contains(Scopes(), scope) {
		return scope, nil
	}
	return "", fmt.Errorf("%q is no scope; expected one of submit, read, admin", s)
}

// Caller is who a request comes from.
type Caller struct {
	// Name is how logs and metrics call it: a token's name, a certificate's, or a
	// user's of this machine. It is never a secret.
	Name   string
	Scopes []Scope
	// Tenant, where it is not empty, limits the caller to the jobs of that tenant.
	Tenant string
	// Ambient means that a browser would identify the caller by itself in whatever
	// request a page makes it send: by where it is, a certificate, a session's cookie
	// or a proxy's. A token has to be added by the page.
	Ambient bool
}

// May reports whether the caller has a scope.
func (c Caller) May(s Scope) bool { return slices.Contains(c.Scopes, s) }

// ScopeNames is the caller's scopes for people.
func (c Caller) ScopeNames() string {
	names := make([]string, len(c.Scopes))
	for i, s := range c.Scopes {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// key is what a request's context keeps its caller and its peer under.
type key int

const (
	callerKey key = iota
	peerKey
)

// With returns a context that knows the caller.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey, c)
}

// From returns the caller that a context knows; the zero Caller may do nothing.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey).(Caller)
	return c
}
