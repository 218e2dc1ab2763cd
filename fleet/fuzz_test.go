package fleet_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/job"
)

// FuzzOrders sends a node anything that shows the secret: it is answered, and nothing is
// done that was not asked for with the right method.
func FuzzOrders(f *testing.F) {
	for _, s := range [][3]string{
		{"GET", "sheep", ""}, {"GET", "sheep/silent/logs?tail=3&follow=false", ""}, {"GET", "sheep/odd%20%2Fname/logs?tail=-1&follow=1", ""},
		{"GET", "jobs/job-1/runs/2/attempts/3/log?tail=99999999999999999999&follow=x", ""}, {"POST", "sheep/well/order", `{"action": "load", "model": {"name": "m"}}`},
		{"POST", "sheep/ill/order", `{"action": 1`}, {"POST", "models/pull", `{"model": {"name": "m", "version": "v"}, "sheep": "s"}`}, {"POST", "models/remove", `{"model": null}`},
		{"HEAD", "gpus", ""}, {"GET", "models", ""}, {"PUT", "../start-job", "{}"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, method, path, body string) {
		u, err := url.ParseRequestURI(fleet.Prefix + path)
		if err != nil || method == "" || strings.HasPrefix(u.Path, fleet.Prefix+"sheep/long/") { // which takes for ever
			return
		}
		b := &box{sheep: []job.Sheep{{Name: "s"}}}
		r := (&http.Request{Method: method, URL: u, Header: http.Header{"Authorization": {"Bearer " + secret}}, Body: io.NopCloser(strings.NewReader(body))}).WithContext(t.Context())
		w := httptest.NewRecorder()
		fleet.Handler(b, secret, rest, discard).ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("status %d", w.Code)
		}
		if method != http.MethodPost && (len(b.orders) > 0 || len(b.changes) > 0) {
			t.Errorf("%s %s has done %v %v", method, path, b.orders, b.changes)
		}
	})
}

// FuzzAnswers has another node answer anything: what it says is taken, or an error that
// a client can be told.
func FuzzAnswers(f *testing.F) {
	for _, text := range []string{
		`[{"name": "s", "type": "bare", "model": {"name": "m", "version": "v"}}]`, `{"driver": "550", "gpus": [{"uuid": "GPU-1", "health": "well"}]}`,
		`{"progress": {"text": "fetching", "done": 1, "total": 2}}` + "\n" + `{"outcome": {}}`, `{"outcome": {"refused": {"code": "model", "subject": "not-found", "text": "x"}}}`,
		`{"refused": {"code": "fault"}}`, `{"code": "draining"}`, `{"code": "invalid", "subject": "model", "text": "\u0000"}`, `[null]`, `null`, `{`, ``,
	} {
		f.Add(http.StatusOK, text)
		f.Add(http.StatusConflict, text)
	}
	var status int
	var text string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}))
	defer server.Close()
	other := fleet.New(fleet.Config{
		Self: "a", Secret: secret, Log: discard,
		Directory: func(context.Context) ([]fleet.Node, error) {
			return []fleet.Node{{Name: "b", Alive: true, Address: server.URL}}, nil
		},
	})
	defer other.Close()
	f.Fuzz(func(t *testing.T, answered int, said string) {
		if answered < 200 || answered > 599 {
			return
		}
		status, text = answered, said
		_, err := other.Sheep(t.Context(), "b")
		_, err2 := other.GPUs(t.Context(), "b")
		log, err3 := other.Logs(t.Context(), "b", "s", job.LogQuery{})
		if err3 == nil {
			log.Close()
		}
		for _, err := range []error{err, err2, err3} {
			var away *job.Unavailable
			if err != nil && answered == http.StatusOK && !errors.As(err, &away) {
				t.Errorf("%d %q: %v", answered, said, err)
			}
			if err != nil && err.Error() == "" {
				t.Errorf("%d %q: an error that says nothing", answered, said)
			}
		}
	})
}
