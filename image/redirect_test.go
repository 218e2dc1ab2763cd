package image

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// The registry keeps its layers in a storage on another port of its host, as many
// do. That is shown no credentials, and when it refuses it is not the registry's
// password that is to blame.
func TestStorageBehindARedirect(t *testing.T) {
	claims.Hold(t, "R1")
	daemon := testenv.StartContainerd(t)
	for i, token := range []bool{false, true} {
		t.Run(fmt.Sprintf("token=%t", token), func(t *testing.T) {
			h := newHomeOn(t, daemon, testenv.RegistryConfig{Username: "ada", Password: "secret", Token: token})
			h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(2, 1000, uint64(10*i))...))
			var refusals atomic.Int32
			shown := make(chan string, 100)
			storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if a := r.Header.Get("Authorization"); a != "" {
					shown <- a
				}
				if refusals.Add(-1) >= 0 {
					http.Error(w, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", http.StatusForbidden)
					return
				}
				h.registry.ServeDirect(w, r)
			}))
			defer storage.Close()
			h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Authorization") != "" {
					return &testenv.RegistryFault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {storage.URL + r.URL.Path}}}
				}
				return nil
			})
			m := job.Model{Name: "model", Version: "v1"}
			credentials := func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", "secret" }
			refusals.Store(1 << 20)
			_, err := h.store(credentials).Ensure(t.Context(), m, nil)
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), strings.TrimPrefix(storage.URL, "http://")+", to which registry "+h.registry.Host+" redirects") ||
				!strings.Contains(err.Error(), "Request has expired") || strings.Contains(err.Error(), "password") {
				t.Errorf("refused: %v", err)
			}
			refusals.Store(2) // an address that had expired
			h.ensure(h.store(credentials), m)
			close(shown)
			for a := range shown {
				t.Errorf("the storage was shown %q", a)
			}
		})
	}
}

// A token that is not good any more in the midst of a pull is renewed, also where
// the registry answers 400 to it, and credentials are read again.
func TestTokenDiesDuringAPull(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			h := newHomeOn(t, daemon, testenv.RegistryConfig{Username: "ada", Password: "secret", Token: true})
			h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(3, 1000, uint64(status))...))
			var tokens, refused int
			h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				switch {
				case r.URL.Path == "/token":
					tokens++
				case strings.Contains(r.URL.Path, "/blobs/") && tokens == 1 && r.Header.Get("Authorization") != "":
					refused++
					return &testenv.RegistryFault{Status: status}
				}
				return nil
			})
			s := h.store(func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", "secret" })
			h.ensure(s, job.Model{Name: "model", Version: "v1"})
			if tokens != 2 || refused == 0 {
				t.Errorf("%d tokens were asked for, %d requests were refused", tokens, refused)
			}
		})
	}
}

// A token server that repeats what it is sent, and one that sends us elsewhere.
func TestTokenServerTellsNothing(t *testing.T) {
	claims.Hold(t, "R1")
	const secret = "hunter2"
	h := newHome(t, testenv.RegistryConfig{Username: "ada", Password: secret, Token: true})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	m := job.Model{Name: "model", Version: "v1"}
	elsewhere := make(chan string, 100)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		elsewhere <- fmt.Sprint(r.Header.Get("Authorization"), r.Form)
		http.Error(w, "no", http.StatusUnauthorized)
	}))
	defer other.Close()
	for name, fault := range map[string]testenv.RegistryFault{
		"echo, 401":      {Status: http.StatusUnauthorized, Text: `{"error":"` + secret + `","error_description":"wrong ` + secret + `","errors":[{"code":"DENIED","message":"` + secret + `"}]}`},
		"echo, 500":      {Status: http.StatusInternalServerError, Text: "panic: password=" + secret},
		"echo, 403 text": {Status: http.StatusForbidden, Text: secret},
		"elsewhere":      {Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {other.URL + "/token"}}},
	} {
		h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
			if r.URL.Path == "/token" {
				return &fault
			}
			return nil
		})
		s := h.store(func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", secret })
		_, err := s.Ensure(t.Context(), m, nil)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "echo, 401" && !strings.Contains(err.Error(), "(DENIED)") {
			t.Errorf("%s: %v; want the code", name, err)
		}
	}
	close(elsewhere)
	for told := range elsewhere {
		t.Errorf("another host was told %q", told)
	}
}
