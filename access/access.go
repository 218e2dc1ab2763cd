// Package access authenticates callers and determines what they may do. A caller has a name,
// scopes and, on a machine shared by several tenants, a tenant to whose jobs it is
// restricted.
//
// A caller is identified in one of these ways, each in its own file: the kernel's
// credentials of the peer of a unix socket (peer.go), a token (token.go), the cookie of a
// session that was opened with a token (session.go), the header of a trusted reverse proxy
// (proxy.go) or a client certificate (certificate.go). A Gate combines them. Which scope a
// route needs is defined in package api.
package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Scope is a permission of a caller.
type Scope string

// The scopes. None includes another.
const (
	Submit Scope = "submit" // start jobs and cancel them
	Read   Scope = "read"   // see jobs, their files, and what the machine does
	Admin  Scope = "admin"  // change the state of sheep, models and nodes
)

// Scopes returns all scopes.
func Scopes() []Scope { return []Scope{Submit, Read, Admin} }

// ParseScope reads a scope's name.
func ParseScope(s string) (Scope, error) {
	if scope := Scope(s); slices.Contains(Scopes(), scope) {
		return scope, nil
	}
	return "", fmt.Errorf("%q is not a scope; expected one of submit, read, admin", s)
}

// Caller is the authenticated sender of a request.
type Caller struct {
	// Name identifies the caller in logs and metrics: the name of a token, certificate or
	// user. It is never a secret.
	Name   string
	Scopes []Scope
	// Tenant, if not empty, restricts the caller to the jobs of that tenant.
	Tenant string
	// Ambient is set if a browser sends the caller's credentials with every request of any
	// page, as with certificates, cookies, proxies and network addresses. A token is not
	// ambient: the page has to add it.
	Ambient bool
}

// May reports whether the caller has a scope.
func (c Caller) May(s Scope) bool { return slices.Contains(c.Scopes, s) }

// ScopeNames formats the caller's scopes for people.
func (c Caller) ScopeNames() string {
	names := make([]string, len(c.Scopes))
	for i, s := range c.Scopes {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// key is the type of the context keys.
type key int

const (
	callerKey key = iota
	peerKey
)

// With returns a context that carries the caller.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey, c)
}

// From returns the caller in the context; the zero Caller has no scopes.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey).(Caller)
	return c
}
