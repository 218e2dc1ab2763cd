package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/webhook"
)

// Secrets come from files, one for each tenant; a file that holds none ends the start
// with a word on what belongs there.
func TestOpenWebhooks(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const one, two = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	good := file("good", one+"\n"+two+"\n")
	open := func(w config.Webhooks) (*webhook.Dispatcher, error) {
		d := &daemon{config: &config.Config{Webhooks: w}, log: slog.New(slog.DiscardHandler), telemetry: &telemetry{metrics: metrics.New("v1", "abc")}}
		return d.openWebhooks()
	}
	if d, err := open(config.Webhooks{Allow: []string{"10.0.0.0/8"}}); d != nil || err != nil {
		t.Errorf("%v, %v", d, err)
	}
	d, err := open(config.Webhooks{SecretFile: good, Receivers: []config.WebhookReceiver{{Name: "ops", URL: "https://example.com", SecretFile: good}}})
	if err != nil {
		t.Fatal(err)
	}
	wool, err := d.JobSecret("wool")
	meat, meatErr := d.JobSecret("meat")
	if err != nil || meatErr != nil || wool == meat || wool == one {
		t.Errorf("the secrets of two tenants are %q and %q, %v, %v", wool, meat, err, meatErr)
	}
	if _, err := webhook.ParseSecret(wool); err != nil {
		t.Error(err)
	}
	alone, err := open(config.Webhooks{Receivers: []config.WebhookReceiver{{Name: "ops", URL: "https://example.com", SecretFile: good}}})
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := alone.JobSecret("wool"); err != nil || secret != "" {
		t.Errorf("jobs may name a receiver: %q, %v", secret, err)
	}
	for name, text := range map[string]string{"empty": "", "short": "whsec_YWJj\n", "text": "hunter2hunter2hunter2hunter2"} {
		path := file(name, text)
		for key, w := range map[string]config.Webhooks{
			"webhooks.secret_file": {SecretFile: path}, "webhooks.receivers[0].secret_file": {Receivers: []config.WebhookReceiver{{Name: "ops", URL: "https://example.com", SecretFile: path}}},
		} {
			_, err := open(w)
			if err == nil || !strings.Contains(err.Error(), key+": "+path) || !strings.Contains(err.Error(), "openssl rand") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s in %s: %v", name, key, err)
			}
		}
	}
	if _, err := open(config.Webhooks{SecretFile: filepath.Join(dir, "none")}); err == nil {
		t.Error("a file that is not there is no trouble")
	}
}
