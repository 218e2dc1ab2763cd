package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// A receiver that fails first is told again, with the same id, though the daemon is killed
// in between; the metrics, the doctor and the list of messages say how that stands.
func TestWebhooks(t *testing.T) {
	var mu sync.Mutex
	well := false
	var ids []string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, r.Header.Get("Webhook-Id"))
		if !well {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer receiver.Close()
	told := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), ids...)
	}

	w := newWorld(t)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	write(t, w.dir+"/hook.secret", "whsec_"+base64.StdEncoding.EncodeToString(secret)+"\n")
	w.edit("state_dir", fmt.Sprintf("webhooks: {allow: [127.0.0.0/8], receivers: [{name: farm, url: %q, secret_file: %s/hook.secret}]}\nstate_dir", receiver.URL, w.dir))
	examined := func() string {
		out, _, _ := w.shepherdd("doctor", "-c", w.config, "-o", "jsonl") // other checks may fail here
		return out
	}
	w.start()
	if out := examined(); !strings.Contains(out, "receiver farm can be reached") {
		t.Errorf("the doctor: %s", out)
	}
	w.submit("job-1", "echo:v1", "one")
	w.expectDone("job-1", "one")
	w.eventually("the receiver is told", func() bool { return len(told()) > 0 })
	shown := func(patterns ...string) func() bool {
		return func() bool {
			metrics := w.metrics()
			for _, pattern := range patterns {
				if !regexp.MustCompile(`(?m)^` + pattern + `$`).MatchString(metrics) {
					return false
				}
			}
			return true
		}
	}
	// A slow machine may try more than once meanwhile.
	w.eventually("the metrics show it", shown(`shepherd_webhook_tries_total{receiver="farm",result="failed"} [1-9]\d*`, `shepherd_webhook_waiting_messages{receiver="farm"} 1`))
	if !strings.Contains(w.metrics(), `shepherd_webhook_oldest_age_seconds{receiver="farm"} `) {
		t.Error("the metrics do not show for how long it waits")
	}

	w.kill()
	mu.Lock()
	well = true
	mu.Unlock()
	w.start()
	w.eventually("the metrics show that it was delivered", shown(`shepherd_webhook_tries_total{receiver="farm",result="delivered"} 1`))
	w.eventually("nothing waits any more", func() bool { return !strings.Contains(w.metrics(), "shepherd_webhook_waiting_messages{") })
	got := told()
	if last := got[len(got)-1]; len(got) < 2 || last == "" || last != got[0] {
		t.Errorf("the receiver was told %q", got)
	}
	if out := w.must("webhooks", "ls", "-o", "jsonl"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"delivered"`) {
		t.Errorf("the messages are %s", out)
	}
	receiver.Close()
	if out := examined(); !strings.Contains(out, "receiver farm: ") || !strings.Contains(out, `"check":"webhooks","level":"warning"`) {
		t.Errorf("the doctor, without the receiver: %s", out)
	}
}
