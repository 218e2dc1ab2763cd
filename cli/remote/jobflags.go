package remote

import (
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// jobFlags are the flags of a job's fields.
type jobFlags struct {
	id, group, sheep   string
	payload            string
	from, after        []string
	labels, nodeLabels map[string]string
	priority           int32
	retries            int
	durations          map[string]*string // by flag
	times              map[string]*string // by flag
	webhook            string
	webhookEvents      []string
}

// add defines the flags.
func (j *jobFlags) add(f *pflag.FlagSet) {
	f.StringVar(&j.id, "id", "", "the job's id (default: the daemon generates one)")
	f.StringVar(&j.payload, "payload", "", "text that is the only input")
	f.StringArrayVar(&j.from, "from", nil, "outputs of another job as inputs: JOB, or JOB:PATH for a file or a directory, such as job-1:outputs/sub/; may be repeated")
	f.StringSliceVar(&j.after, "after", nil, "a job that this one waits for, whose outputs become inputs below JOB/; may be repeated")
	f.StringVar(&j.group, "group", "", "the group that the job belongs to, for ls, cancel and retry with --group")
	f.StringToStringVar(&j.nodeLabels, "node-label", nil, "a label that the node must have, `KEY=VALUE`; may be repeated")
	f.StringToStringVar(&j.labels, "label", nil, "a label of the job, `KEY=VALUE`; may be repeated")
	for _, name := range []string{"label", "node-label"} {
		f.Lookup(name).DefValue = "" // not to be shown as []
	}
	f.StringVar(&j.sheep, "sheep", "", "the only sheep that may run it")
	f.Int32Var(&j.priority, "priority", 0, "higher goes first (default 0)")
	f.IntVar(&j.retries, "retries", 0, "how often it is tried again after a failure of its own (default: as configured)")
	j.durations, j.times = map[string]*string{}, map[string]*string{}
	for _, flag := range []struct {
		to         map[string]*string
		name, help string
	}{
		{j.durations, "retry-pause", "pause before the first retry, doubled for each further one, such as 30s (default: as configured)"},
		{j.durations, "wait-timeout", "how long it may wait until a sheep starts it, such as 2h (default: as configured)"},
		{j.durations, "load-timeout", "how long loading the model and starting its runner may take, such as 30m (default: as configured)"},
		{j.durations, "run-timeout", "how long the runner may take for it, such as 10m (default: as configured)"},
		{j.durations, "keep", "how long its files are kept after its end, such as 7d; 0 is indefinitely (default: as configured)"},
		{j.times, "not-before", "the earliest time at which it may start (2030-01-01T06:00:00Z), or how long from now (2h)"},
		{j.times, "deadline", "the time at which it fails if it has not ended, or how long from now"},
	} {
		flag.to[flag.name] = f.String(flag.name, "", flag.help)
	}
	f.StringVar(&j.webhook, "webhook", "", "where to send a signed message when the job has ended (https://example.com/hook)")
	f.StringSliceVar(&j.webhookEvents, "webhook-events", nil, "events to send to --webhook: queued, claimed, started, returned, due, cancel, ended (default ended)")
}

// request is the job of the model with what the flags say of it. files is how many input
// files it has.
func (j *jobFlags) request(f *pflag.FlagSet, model string, files int) (r client.JobRequest, err error) {
	m := job.ParseModel(model)
	r.Model.Name, r.Model.Version = m.Name, m.Version
	if f.Changed("payload") {
		if files > 0 {
			return r, usage("--payload cannot be combined with files")
		}
		r.Payload = &j.payload
	}
	if f.Changed("id") {
		r.JobId = &j.id
	}
	if f.Changed("sheep") {
		r.SheepId = &j.sheep
	}
	if f.Changed("group") {
		r.Group = &j.group
	}
	if f.Changed("priority") {
		r.Priority = &j.priority
	}
	if f.Changed("retries") {
		r.Retries = &j.retries
	}
	if len(j.nodeLabels) > 0 {
		r.NodeLabels = &j.nodeLabels
	}
	if len(j.labels) > 0 {
		r.Labels = &j.labels
	}
	if len(j.after) > 0 {
		r.After = &j.after
	}
	for name, to := range map[string]**client.Duration{
		"retry-pause": &r.RetryPause, "wait-timeout": &r.WaitTimeout, "load-timeout": &r.LoadTimeout, "run-timeout": &r.RunTimeout, "keep": &r.Keep,
	} {
		if f.Changed(name) {
			*to = new(client.Duration(*j.durations[name]))
		}
	}
	for _, flag := range []struct {
		name string
		to   **time.Time
	}{{"not-before", &r.NotBefore}, {"deadline", &r.Deadline}} {
		if f.Changed(flag.name) {
			if *flag.to, err = timeFlag(flag.name, *j.times[flag.name]); err != nil {
				return r, err
			}
		}
	}
	if r.Webhook, err = webhookFlag(j.webhook, j.webhookEvents); err != nil {
		return r, err
	}
	if r.Inputs, err = references(j.from); err != nil {
		return r, err
	}
	if files == 0 && r.Payload == nil && r.Inputs == nil && r.After == nil && r.JobId == nil {
		return r, usage("the job has no inputs: name files or directories, - for standard input, or give --payload, --from, --after, or the --id of a job whose inputs are in storage")
	}
	return r, nil
}

// webhookFlag is where messages about a job are sent; nil for nowhere.
func webhookFlag(address string, events []string) (*client.Webhook, error) {
	if address == "" {
		if len(events) > 0 {
			return nil, usage("--webhook-events needs --webhook")
		}
		return nil, nil
	}
	if err := job.CheckWebhookURL(address); err != nil {
		return nil, usage("--webhook: %w", err)
	}
	webhook := &client.Webhook{Url: address}
	for _, name := range events {
		if webhook.Events == nil {
			webhook.Events = new([]client.WebhookEvents)
		}
		*webhook.Events = append(*webhook.Events, client.WebhookEvents(name))
	}
	return webhook, nil
}

// timeFlag reads a time, or how long from now.
func timeFlag(name, value string) (*time.Time, error) {
	if after, err := time.ParseDuration(value); err == nil && after >= 0 {
		return new(time.Now().Add(after).UTC()), nil
	}
	at, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return nil, usage("--%s: %q is neither a time such as 2030-01-01T06:00:00Z nor a duration such as 2h", name, value)
	}
	return &at, nil
}

// references are the files of other jobs that flags name.
func references(from []string) (*[]client.InputReference, error) {
	if len(from) == 0 {
		return nil, nil
	}
	var list []client.InputReference
	for _, text := range from {
		id, file, ok := strings.Cut(text, ":")
		if id == "" {
			return nil, usage("--from: %q names no job", text)
		}
		reference := client.InputReference{Job: id}
		if ok {
			reference.Path = &file
		}
		list = append(list, reference)
	}
	return &list, nil
}
