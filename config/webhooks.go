package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/iterait/shepherd/job"
)

// Webhooks configures messages about jobs.
type Webhooks struct {
	// SecretFile holds the secret from which the signing secrets for receivers named by
	// jobs are derived; empty forbids such receivers.
	SecretFile string `yaml:"secret_file,omitempty"`
	// Allow are private or local addresses and networks to which messages may be sent.
	Allow []string `yaml:"allow,omitempty"`
	// Receivers receive messages about all jobs, or about one tenant's.
	Receivers []WebhookReceiver `yaml:"receivers,omitempty"`
}

// WebhookReceiver is a configured receiver of messages.
type WebhookReceiver struct {
	Name string `yaml:"name"`
	URL  string `yaml:"url"`
	// SecretFile holds a secret in each line; messages are signed with all of them.
	SecretFile string `yaml:"secret_file"`
	// Events are the kinds of events to send; none means ended.
	Events []string `yaml:"events,omitempty"`
	// Tenant is the tenant whose jobs the receiver gets messages about; empty for all.
	Tenant string `yaml:"tenant,omitempty"`
}

// EventKinds are Events as the checked configuration has them.
func (r WebhookReceiver) EventKinds() []job.EventKind {
	kinds := make([]job.EventKind, len(r.Events))
	for i, text := range r.Events {
		kinds[i] = job.EventKind(text)
	}
	return kinds
}

// AllowedNetworks parses Allow, which has been checked.
func (w Webhooks) AllowedNetworks() []netip.Prefix {
	var networks []netip.Prefix
	for _, text := range w.Allow {
		if network, ok := parseNetwork(text); ok {
			networks = append(networks, network)
		}
	}
	return networks
}

// checkWebhooks checks the section webhooks.
func checkWebhooks(r *report, w *Webhooks) {
	r.notEmpty("webhooks.secret_file", w.SecretFile == "")
	r.expect(w.SecretFile == "" || filepath.IsAbs(w.SecretFile), "webhooks.secret_file", "an absolute path")
	for i, text := range w.Allow {
		if _, ok := parseNetwork(text); !ok {
			r.item(r.at("webhooks.allow"), i, "webhooks.allow", "expected an IP address, or a network such as 10.0.0.0/8")
		}
	}
	const path = "webhooks.receivers"
	list := r.at(path)
	if list == nil {
		return
	}
	names := map[string]bool{}
	for i, to := range w.Receivers {
		wrong := func(key, problem string) { r.within(list, i, path, key, problem) }
		wrong("name", nameProblem("receiver", to.Name, names))
		wrong("tenant", tenantProblem(to.Tenant, nil))
		switch err := job.CheckWebhookURL(to.URL); {
		case to.URL == "":
			wrong("url", requiredKey+" or has no value; expected a URL such as https://example.com/hook")
		case err != nil:
			wrong("url", err.Error())
		}
		switch {
		case to.SecretFile == "":
			wrong("secret_file", requiredKey+" or has no value; expected the path of a file with the secret (echo whsec_$(openssl rand -base64 32))")
		case !filepath.IsAbs(to.SecretFile):
			wrong("secret_file", "expected an absolute path")
		}
		known := make([]string, 0, len(job.WebhookEvents()))
		for _, kind := range job.WebhookEvents() {
			known = append(known, string(kind))
		}
		for _, text := range to.Events {
			if !slices.Contains(known, text) {
				wrong("events", fmt.Sprintf("%q is not an event that can be sent; expected some of %s", text, strings.Join(known, ", ")))
			}
		}
	}
}
