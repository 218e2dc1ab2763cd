package daemon

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/webhook"
)

// openWebhooks creates the dispatcher of webhooks, without starting it; nil if none are
// configured.
func (d *daemon) openWebhooks() (*webhook.Dispatcher, error) {
	w := d.config.Webhooks
	if w.SecretFile == "" && len(w.Receivers) == 0 {
		return nil, nil
	}
	debug := d.config.API.Debug
	cfg := webhook.Config{
		Ledger: d.ledger, Tried: d.telemetry.metrics.Tried, Allow: w.AllowedNetworks(), Shared: d.config.Ledger.Shared(), UserAgent: "shepherd/" + d.options.Version, Log: d.log,
		Event: func(e job.Event) (json.RawMessage, error) { return api.EventJSON(e, debug) },
	}
	if w.SecretFile != "" {
		if _, err := webhookSecrets(w.SecretFile); err != nil {
			return nil, fmt.Errorf("webhooks.secret_file: %w", err)
		}
		cfg.JobSecrets = func(tenant string) ([]webhook.Secret, error) {
			secrets, err := webhookSecrets(w.SecretFile)
			for i, secret := range secrets {
				secrets[i] = secret.ForTenant(tenant)
			}
			return secrets, err
		}
	}
	for i, r := range w.Receivers {
		read := func() ([]webhook.Secret, error) { return webhookSecrets(r.SecretFile) }
		if _, err := read(); err != nil {
			return nil, fmt.Errorf("webhooks.receivers[%d].secret_file: %w", i, err)
		}
		cfg.Receivers = append(cfg.Receivers, webhook.Receiver{Name: r.Name, URL: r.URL, Secrets: read, Events: r.EventKinds(), Tenant: r.Tenant})
	}
	for _, r := range cfg.Receivers {
		d.telemetry.metrics.Receiver(r.Name)
	}
	if cfg.JobSecrets != nil {
		d.telemetry.metrics.Receiver("")
	}
	return webhook.New(cfg), nil
}

// webhookSecrets reads the secrets in a file. Errors do not contain them.
func webhookSecrets(file string) ([]webhook.Secret, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	secrets, err := webhook.ParseSecrets(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return secrets, nil
}
