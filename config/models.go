package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/iterait/shepherd/job"
)

// checkModels checks the section models.
func checkModels(r *report, m *Models) {
	if list := r.at("models.allow"); list != nil && !r.problems.cover(list, "models.allow") {
		if len(m.Allow) == 0 {
			r.reject("models.allow", "is empty, so that no model could be run; name those that may, or leave it out for all")
		}
		for i, text := range m.Allow {
			if _, err := job.ParseRule(text); err != nil {
				r.item(list, i, "models.allow", err.Error())
			}
		}
	}
	for i, l := range m.Limits {
		if item := r.modelPattern("models.limits", i, l.Model); item != nil {
			r.limits(item, fmt.Sprintf("models.limits[%d]", i), l.Limits)
		}
	}
	for i, n := range m.Nodes {
		if item := r.modelPattern("models.nodes", i, n.Model); item != nil {
			if len(n.Labels) == 0 {
				r.within(r.at("models.nodes"), i, "models.nodes", "labels", requiredKey+" or is empty; expected a list of KEY=VALUE")
			}
			r.labels(item.get("labels"), fmt.Sprintf("models.nodes[%d].labels", i), n.Labels)
		}
	}
	list := r.at("models.contracts")
	for i, c := range m.Contracts {
		if r.modelPattern("models.contracts", i, c.Model) == nil {
			continue
		}
		within := func(key, problem string) { r.within(list, i, "models.contracts", key, problem) }
		switch {
		case c.Contract == "" && c.Command == nil && c.Args == nil:
			within("contract", requiredKey+", as are command and args; expected zeromq, command, warm or cog")
		case c.Contract != "" && !slices.Contains([]string{"zeromq", "command", "warm", "cog"}, c.Contract):
			within("contract", fmt.Sprintf("%q is none of zeromq, command, warm and cog", c.Contract))
		}
		if c.Command != nil && (len(c.Command) == 0 || c.Command[0] == "") {
			within("command", "is empty; leave it out for the image's own")
		}
	}
}

// modelPattern checks the model of item i of the list at path, and returns the item; nil if
// the item has been reported already.
func (r *report) modelPattern(path string, i int, model string) *node {
	list := r.at(path)
	if i >= len(list.items) || r.problems.cover(list.items[i], fmt.Sprintf("%s[%d]", path, i)) {
		return nil
	}
	switch rule, err := job.ParseRule(model); {
	case model == "":
		r.within(list, i, path, "model", requiredKey+" or has no value; expected NAME or NAME:VERSION, with * for any characters")
	case err != nil:
		r.within(list, i, path, "model", err.Error())
	case rule.Digest != "":
		r.within(list, i, path, "model", "has a digest; this goes by name and version, leave it out")
	}
	return list.items[i]
}

// limits checks the limits in section n, which may be nil.
func (r *report) limits(n *node, path string, l Limits) {
	for _, wrong := range l.Job().Validate() {
		value, at := n.get(wrong.Field), below(path, wrong.Field)
		if value == nil || r.problems.cover(value, at) {
			continue
		}
		expected := fmt.Sprintf("a duration from 0s to %s", job.FormatDuration(job.MaxTimeout))
		if wrong.Field == "retries" {
			expected = fmt.Sprintf("a whole number from 0 to %d", job.MaxRetries)
		}
		r.wrong(value, at, "expected %s, found %s", expected, value.shown())
	}
}

// labels checks a list of KEY=VALUE with distinct keys.
func (r *report) labels(list *node, path string, labels []string) {
	seen := map[string]bool{}
	for i, text := range labels {
		key, value, found := strings.Cut(text, "=")
		switch err := job.ValidateLabel(key, value); {
		case !found:
			r.item(list, i, path, "has no =; expected KEY=VALUE")
		case err != nil:
			r.item(list, i, path, err.Error())
		case seen[key]:
			r.item(list, i, path, fmt.Sprintf("the key %s is there twice", key))
		}
		seen[key] = true
	}
}
