package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

// work is the digits, each of which is a job, and their results.
type work struct {
	nodes      []*node
	database   string // its URL
	samples    []digits.Sample
	answers    []int // that were predicted, by sample
	classified atomic.Int64
}

func newWork(nodes []*node, database string, samples []digits.Sample) *work {
	return &work{nodes: nodes, database: database, samples: samples, answers: make([]int, len(samples))}
}

// clients is how many clients submit and wait at the same time.
const clients = 8

// run classifies all digits. Clients use the two nodes in turn, and the other one if a node does
// not answer, as behind a load balancer.
func (w *work) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(clients)
	for i := range w.samples {
		group.Go(func() error { return w.classify(ctx, i) })
	}
	return group.Wait()
}

// jobID returns the id of a sample's job.
func (w *work) jobID(i int) string {
	return "digit-" + strings.TrimSuffix(w.samples[i].Name, ".png")
}

func (w *work) classify(ctx context.Context, i int) error {
	id, at := w.jobID(i), i
	for _, step := range []func(context.Context, *client.ClientWithResponses) error{
		func(ctx context.Context, c *client.ClientWithResponses) error {
			return submit(ctx, c, id, w.samples[i])
		},
		func(ctx context.Context, c *client.ClientWithResponses) error { return await(ctx, c, id) },
		func(ctx context.Context, c *client.ClientWithResponses) (err error) {
			w.answers[i], err = result(ctx, c, id)
			return err
		},
	} {
		for {
			err := step(ctx, w.nodes[at%len(w.nodes)].client)
			if err == nil {
				break
			}
			var unreachable *client.UnreachableError
			if ctx.Err() != nil || !errors.As(err, &unreachable) && !client.Is(err, http.StatusServiceUnavailable) {
				return fmt.Errorf("job %s: %w", id, err)
			}
			at++ // the other node
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	w.classified.Add(1)
	return nil
}

// submit submits a job with a digit. With the idempotency key, sending it again makes no second
// job.
func submit(ctx context.Context, c *client.ClientWithResponses, id string, s digits.Sample) error {
	request := client.JobRequest{JobId: &id}
	request.Model.Name, request.Model.Version = "digits", "v1"
	form := client.NewForm(request, func(w *client.FormWriter) error { return w.File("input", bytes.NewReader(s.PNG)) })
	defer form.Close()
	_, err := c.CreateJobWithBodyWithResponse(ctx, &client.CreateJobParams{IdempotencyKey: &id}, form.ContentType(), form)
	return err
}

// await returns when the job is done.
func await(ctx context.Context, c *client.ClientWithResponses, id string) error {
	for {
		answer, err := c.WaitForJobWithResponse(ctx, id, &client.WaitForJobParams{})
		switch {
		case err != nil:
			return err
		case answer.JSON200 == nil:
			return fmt.Errorf("the answer %s is not known", answer.HTTPResponse.Status)
		case answer.JSON200.State == job.Done:
			return nil
		case answer.JSON200.State.Final():
			return fmt.Errorf("it is %s: %v", answer.JSON200.State, answer.JSON200.Failure)
		}
	}
}

// result returns the predicted digit.
func result(ctx context.Context, c *client.ClientWithResponses, id string) (int, error) {
	answer, err := c.GetResultWithResponse(ctx, id)
	if err != nil {
		return 0, err
	}
	var output struct {
		Predictions []struct{ Digit int }
	}
	if err := json.Unmarshal(answer.Body, &output); err != nil || len(output.Predictions) != 1 {
		return 0, fmt.Errorf("its result %q is not one prediction: %w", answer.Body, err)
	}
	return output.Predictions[0].Digit, nil
}

// loss is the moment at which a node was killed.
type loss struct {
	node       string
	at         time.Time
	classified int64
	held       int // jobs that the node had
}

// settleTime is how long requests that a node sent before it was stopped may take.
const settleTime = 300 * time.Millisecond

// killOne kills a node that holds jobs, after some digits are classified. It suspends the node
// first, so that the number of its jobs is still right when it is killed.
func (w *work) killOne(ctx context.Context, victim *node) (loss, error) {
	k := loss{node: victim.name}
	for k.held == 0 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return k, ctx.Err()
		}
		if k.classified = w.classified.Load(); k.classified < killAfter {
			continue
		}
		if int(k.classified) == len(w.samples) {
			return k, fmt.Errorf("all digits were classified before node %s could be killed", victim.name)
		}
		err := victim.paused(func() (err error) {
			time.Sleep(settleTime)
			if k.held, err = w.held(ctx, victim.name); err != nil || k.held == 0 {
				return err
			}
			k.at = time.Now()
			return victim.kill(ctx)
		})
		if err != nil {
			return k, err
		}
	}
	return k, nil
}

// held reads from the database how many jobs a node holds.
func (w *work) held(ctx context.Context, name string) (held int, err error) {
	return held, postgres.Manage(ctx, postgres.Config{URL: w.database}, func(a *postgres.Admin) error {
		known, err := a.Nodes(ctx)
		for _, n := range known {
			if strings.HasPrefix(n.Name, name+"-") {
				held = n.Held
			}
		}
		return err
	})
}

// attemptsOf reads the attempts of a job from a node.
func attemptsOf(ctx context.Context, asked *node, id string) ([]client.Attempt, error) {
	answer, err := asked.client.GetJobWithResponse(ctx, id, &client.GetJobParams{})
	if err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if answer.JSON200 == nil || answer.JSON200.Attempts == nil {
		return nil, fmt.Errorf("job %s: the answer %s tells of no attempts", id, answer.HTTPResponse.Status)
	}
	return *answer.JSON200.Attempts, nil
}

// nodeOf returns the configured name of a node, without its suffix.
func nodeOf(a client.Attempt) string {
	name, _, _ := strings.Cut(a.Node, "-")
	return name
}
