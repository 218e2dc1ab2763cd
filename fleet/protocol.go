package fleet

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Prefix is the prefix of the paths of requests between nodes.
const Prefix = "/fleet/v1/"

// scheme is the authorization scheme of the secret.
const scheme = "Bearer "

const (
	sheepPath = Prefix + "sheep"
	gpusPath  = Prefix + "gpus"

	modelsPath = Prefix + "models"
	pullPath   = modelsPath + "/pull"
	removePath = modelsPath + "/remove"
)

func sheepLogPath(sheep string, q job.LogQuery) string {
	return sheepPath + "/" + url.PathEscape(sheep) + "/logs?" + queryOf(q)
}

func attemptLogPath(id job.ID, run, attempt int, q job.LogQuery) string {
	return fmt.Sprintf("%sjobs/%s/runs/%d/attempts/%d/log?%s", Prefix, url.PathEscape(string(id)), run, attempt, queryOf(q))
}

func queryOf(q job.LogQuery) string {
	return url.Values{"tail": {strconv.Itoa(q.Tail)}, "follow": {strconv.FormatBool(q.Follow)}}.Encode()
}

func parseQuery(v url.Values) (q job.LogQuery, err error) {
	if q.Tail, err = strconv.Atoi(v.Get("tail")); err != nil {
		return q, err
	}
	q.Follow, err = strconv.ParseBool(v.Get("follow"))
	return q, err
}

func orderPath(sheep string) string { return sheepPath + "/" + url.PathEscape(sheep) + "/order" }

// maxOrder bounds an order, in bytes.
const maxOrder = 64 << 10

// pullOrder is an order to fetch a model.
type pullOrder struct {
	Model job.Model `json:"model"`
	Sheep string    `json:"sheep,omitempty"`
}

// removeOrder is an order to remove a model.
type removeOrder struct {
	Model job.Model `json:"model"`
}

// pullStep is a line of the answer to a pullOrder. The last one has the outcome.
type pullStep struct {
	Progress *job.PullProgress `json:"progress,omitempty"`
	Outcome  *outcome          `json:"outcome,omitempty"`
}

// outcome is the answer to an order.
type outcome struct {
	Refused *refusal `json:"refused,omitempty"`
}

// refusal is the answer to a request that a node cannot serve.
type refusal struct {
	Code    string `json:"code"`
	Subject string `json:"subject,omitempty"`
	Text    string `json:"text,omitempty"`
}

// codeFault is the code of an internal error; the node's log has the cause.
const codeFault = "fault"

// refusalOf returns the refusal for an error; ok is false for an internal error.
func refusalOf(err error) (_ refusal, ok bool) {
	for _, known := range refusals {
		if subject, ok := known.is(err); ok {
			return refusal{Code: known.code, Subject: subject}, true
		}
	}
	var state *job.SheepState
	if errors.As(err, &state) {
		return refusal{Code: string(state.Is), Subject: state.Sheep}, true
	}
	var invalid *job.Invalid
	if errors.As(err, &invalid) {
		return refusal{codeInvalid, invalid.Field, invalid.Problem}, true
	}
	var untrusted *job.Untrusted
	if errors.As(err, &untrusted) {
		return refusal{codeUntrusted, untrusted.Model.String(), untrusted.Reason}, true
	}
	var needed *job.ModelNeeded
	if errors.As(err, &needed) {
		if needed.Job != "" {
			return refusal{codeNeededByJob, needed.Model.String(), string(needed.Job)}, true
		}
		return refusal{codeNeededBySheep, needed.Model.String(), needed.Sheep}, true
	}
	var model *job.ModelError
	if errors.As(err, &model) {
		for _, c := range modelClasses {
			if errors.Is(model.Class, c.class) {
				return refusal{codeModel, c.name, model.Problem}, true
			}
		}
		return refusal{Code: codeModel, Text: model.Problem}, true
	}
	return refusal{}, false
}

// err returns the error of a refusal; nil if this version does not know it.
func (r refusal) err() error {
	for _, known := range refusals {
		if known.code == r.Code {
			return known.err(r.Subject)
		}
	}
	switch r.Code {
	case codeInvalid:
		return &job.Invalid{Field: r.Subject, Problem: r.Text}
	case codeUntrusted:
		return &job.Untrusted{Model: job.ParseModel(r.Subject), Reason: r.Text}
	case codeNeededByJob:
		return &job.ModelNeeded{Model: job.ParseModel(r.Subject), Job: job.ID(r.Text)}
	case codeNeededBySheep:
		return &job.ModelNeeded{Model: job.ParseModel(r.Subject), Sheep: r.Text}
	case codeModel:
		var class error = errdefs.ErrInternal
		for _, c := range modelClasses {
			if c.name == r.Subject {
				class = c.class
			}
		}
		return &job.ModelError{Problem: r.Text, Class: class}
	}
	if slices.Contains(job.SheepTroubles, job.SheepTrouble(r.Code)) {
		return &job.SheepState{Sheep: r.Subject, Is: job.SheepTrouble(r.Code)}
	}
	return nil
}

// Refusals with a text.
const (
	codeInvalid   = "invalid"
	codeUntrusted = "untrusted"
	codeModel     = "model"

	codeNeededByJob   = "model-needed-by-job"
	codeNeededBySheep = "model-needed-by-sheep"
)

// modelClasses are the classes of errors about models, by their names here.
var modelClasses = []struct {
	name  string
	class error
}{
	{"not-found", errdefs.ErrNotFound}, {"invalid", errdefs.ErrInvalidArgument}, {"failed-precondition", errdefs.ErrFailedPrecondition},
	{"permission-denied", errdefs.ErrPermissionDenied}, {"resource-exhausted", errdefs.ErrResourceExhausted}, {"unavailable", errdefs.ErrUnavailable},
}

// refusals are the errors that are passed on unchanged.
var refusals = []struct {
	code string
	err  func(subject string) error
	is   func(error) (subject string, ok bool)
}{
	{"unknown-sheep", func(name string) error { return &job.UnknownSheep{Name: name} }, func(err error) (string, bool) {
		var unknown *job.UnknownSheep
		if errors.As(err, &unknown) {
			return unknown.Name, true
		}
		return "", false
	}},
	{"draining", func(string) error { return job.ErrDraining }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrDraining) }},
	{"no-models", func(string) error { return job.ErrNoModels }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrNoModels) }},
	{"no-log", func(string) error { return job.ErrNoLog }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrNoLog) }},
	{"no-job-log", func(string) error { return job.ErrNoJobLog }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrNoJobLog) }},
}
