package fleet

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"github.com/iterait/shepherd/job"
)

// Prefix is what the paths of requests between nodes begin with.
const Prefix = "/fleet/v1/"

// scheme is how a request shows the secret.
const scheme = "Bearer "

const (
	sheepPath = Prefix + "sheep"
	gpusPath  = Prefix + "gpus"
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

// refusal is the answer to a request that a node cannot serve.
type refusal struct {
	Code    string `json:"code"`
	Subject string `json:"subject,omitempty"`
}

// refusals are the errors that are the same for whoever has asked the other node.
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
	{"no-log", func(string) error { return job.ErrNoLog }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrNoLog) }},
	{"no-job-log", func(string) error { return job.ErrNoJobLog }, func(err error) (string, bool) { return "", errors.Is(err, job.ErrNoJobLog) }},
}
