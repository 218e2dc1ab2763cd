package image

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

func TestTokenLife(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"":             time.Minute,
		"null":         time.Minute,
		"0":            time.Minute,
		"-5":           time.Minute,
		"0.5":          time.Minute,
		`"soon"`:       time.Minute,
		`""`:           time.Minute,
		"[1]":          time.Minute,
		"NaN":          time.Minute,
		"300":          5 * time.Minute,
		"300.7":        5 * time.Minute,
		"3e2":          5 * time.Minute,
		`"300"`:        5 * time.Minute,
		"86401":        24 * time.Hour,
		"9999999999":   24 * time.Hour,
		"1e30":         24 * time.Hour,
		"1e999":        24 * time.Hour,
		"-1e999":       time.Minute,
		`"1000000000"`: 24 * time.Hour,
	} {
		if got := tokenLife(json.RawMessage(text)); got != want {
			t.Errorf("expires_in %s is %s, want %s", text, got, want)
		}
	}
}

// Token servers as they are in the world: every answer is understood, and a server
// that refuses POST is asked by GET.
func TestTokenServers(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	h := newHomeOn(t, daemon, testenv.RegistryConfig{Username: "ada", Password: "secret", Token: true})
	h.registry.Push(t, "model:v1", testenv.Image(t, v1.Config{}, h.layers(1, 1000, 1)...))
	m := job.Model{Name: "model", Version: "v1"}
	for name, answer := range map[string]string{
		"no lifetime":            `{"token":%q}`,
		"access_token alone":     `{"access_token":%q}`,
		"a lifetime of 0":        `{"token":%q,"expires_in":0}`,
		"a negative lifetime":    `{"token":%q,"expires_in":-1}`,
		"a huge lifetime":        `{"token":%q,"expires_in":1e30}`,
		"a lifetime in quotes":   `{"token":%q,"expires_in":"300"}`,
		"a lifetime with parts":  `{"token":%q,"expires_in":299.9}`,
		"no time of issue":       `{"token":%q,"issued_at":""}`,
		"an odd time of issue":   `{"token":%q,"issued_at":"2026-11-29 02:45:00"}`,
		"a time of issue as int": `{"token":%q,"issued_at":1790000000,"scope":["a"],"refresh_token":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			token := h.registry.GiveToken()
			h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				if r.URL.Path == "/token" {
					return &testenv.RegistryFault{Status: http.StatusOK, Text: fmt.Sprintf(answer, token)}
				}
				return nil
			})
			s := h.store(func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", "secret" })
			if _, err := s.Ensure(t.Context(), m, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for _, status := range []int{400, 401, 403, 404, 405, 406, 411, 415, 501} {
		t.Run(fmt.Sprint("POST is answered ", status), func(t *testing.T) {
			h.registry.SetFault(func(r *http.Request) *testenv.RegistryFault {
				if r.URL.Path == "/token" && r.Method == http.MethodPost {
					return &testenv.RegistryFault{Status: status}
				}
				return nil
			})
			s := h.store(func(c *Config) { c.Registry.Username, c.Registry.Password = "ada", "secret" })
			if _, err := s.Ensure(t.Context(), m, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// A token whose server names no lifetime is asked for again when the
// specification's minute is over, not kept until the registry refuses it.
func TestTokenWithoutLifetime(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"token":"t"}`)
	}))
	defer server.Close()
	transport, err := newTransport("")
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: &retryTransport{base: transport, retryPolicy: hasty, tokens: true}}
	resp, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token     string `json:"token"`
		ExpiresIn int    `json:"expires_in"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token != "t" || answer.ExpiresIn != 60 {
		t.Errorf("got %+v, %v", answer, err)
	}
}

func FuzzTokenAnswer(f *testing.F) {
	f.Add(`{"token":"t","expires_in":300}`)
	f.Add(`{"access_token":"t","expires_in":"1e400","issued_at":7}`)
	f.Add(`[]`)
	f.Add(`{"token":null,"access_token":"a","refresh_token":"r","expires_in":-1,"issued_at":"2026-11-22T10:08:03Z"}`)
	f.Add(`{"token":["t"],"expires_in":1.5}`)
	f.Add(`{"Token":"t","EXPIRES_IN":"60","expires_in":9223372036854775808}`)
	f.Fuzz(func(t *testing.T, text string) {
		got := normalizeToken([]byte(text))
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &fields) != nil {
			return
		}
		var answer struct {
			Token        string `json:"token"`
			AccessToken  string `json:"access_token"`
			RefreshToken string `json:"refresh_token"`
			ExpiresIn    int    `json:"expires_in"`
		}
		if err := json.Unmarshal(got, &answer); err != nil || answer.ExpiresIn < 1 || answer.ExpiresIn > int(maxTokenLife/time.Second) {
			t.Errorf("%q became %q: %v", text, got, err)
		}
	})
}
