package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// maxAnswer bounds an answer that is read into memory, in bytes.
const maxAnswer = 8 << 20

var errDown = fmt.Errorf("its lease in the ledger has ended: %w", errdefs.ErrUnavailable)

var errNoSecret = fmt.Errorf("fleet.secret_file is not configured: %w", errdefs.ErrFailedPrecondition)

// open sends a request with the given body, which may be nil, to another node. The error is
// *job.UnknownNode, *job.Unavailable if the node cannot be reached, or the node's own.
func (f *Fleet) open(ctx context.Context, node, method, path string, body io.Reader) (io.ReadCloser, error) {
	if f.secret == "" {
		return nil, unreachable(node, "cannot be asked: set fleet.secret_file on all nodes", errNoSecret)
	}
	address, err := f.addressOf(ctx, node)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(address, "/")+path, body)
	if err != nil {
		return nil, unreachable(node, "has announced an address that is none", err)
	}
	request.Header.Set("Authorization", scheme+f.secret)
	response, err := f.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f.log.Warn("Another node does not answer", "node", node, "address", address, "error", err)
		return nil, unreachable(node, "does not answer", err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	var text []byte
	if response.StatusCode != http.StatusSwitchingProtocols { // after that ctx does not end a read
		text, err = io.ReadAll(io.LimitReader(response.Body, 1<<10))
	}
	var told refusal
	if err == nil && json.Unmarshal(text, &told) == nil {
		if refused := told.err(); refused != nil {
			return nil, refused
		}
	}
	problem := fmt.Sprintf("answers with status %d", response.StatusCode)
	if response.StatusCode == http.StatusUnauthorized {
		problem = "does not know this node's secret: fleet.secret_file must hold the same on all nodes"
	}
	f.log.Warn("Another node refuses a request", "node", node, "address", address, "status", response.StatusCode)
	return nil, unreachable(node, problem, errors.New(response.Status))
}

// addressOf looks up a live node.
func (f *Fleet) addressOf(ctx context.Context, node string) (string, error) {
	nodes, err := f.directory(ctx)
	if err != nil {
		return "", fmt.Errorf("look up node %s: %w", node, err)
	}
	for _, n := range nodes {
		switch {
		case n.Name != node:
		case !n.Alive:
			return "", unreachable(node, "is not up", errDown)
		case n.Address == "":
			return "", unreachable(node, "has not announced its address", errdefs.ErrUnavailable)
		default:
			return n.Address, nil
		}
	}
	return "", &job.UnknownNode{Name: node}
}

// get reads an answer into a value, within Config.Timeout.
func (f *Fleet) get(ctx context.Context, node, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	body, err := f.open(ctx, node, http.MethodGet, path, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return unreachable(node, "does not answer", err)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(into); err != nil {
		return unreachable(node, "breaks off its answer", err)
	}
	return nil
}

// order sends an order to another node, and returns when it has been executed.
func (f *Fleet) order(ctx context.Context, node, path string, order any) error {
	data, err := json.Marshal(order)
	if err != nil {
		return fmt.Errorf("write an order for node %s: %w", node, err)
	}
	body, err := f.open(ctx, node, http.MethodPost, path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer body.Close()
	var told outcome
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&told); err != nil {
		return brokenOff(ctx, node, err)
	}
	return told.err(node)
}

// brokenOff returns the error of an order whose answer was interrupted.
func brokenOff(ctx context.Context, node string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return unreachable(node, "breaks off its answer; look whether it has done what it was told", err)
}

// err returns the result of an order that was sent to a node.
func (o outcome) err(node string) error {
	if o.Refused == nil {
		return nil
	}
	if err := o.Refused.err(); err != nil {
		return err
	}
	return unreachable(node, "could not do it; its log says why", fmt.Errorf("refused with %q", o.Refused.Code))
}

// pull lets another node fetch a model, and returns when it has.
func (f *Fleet) pull(ctx context.Context, node string, o pullOrder, report func(job.PullProgress)) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("write an order for node %s: %w", node, err)
	}
	body, err := f.open(ctx, node, http.MethodPost, pullPath, bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer body.Close()
	for steps := json.NewDecoder(body); ; {
		var step pullStep
		if err := steps.Decode(&step); err != nil {
			return brokenOff(ctx, node, err)
		}
		if step.Outcome != nil {
			return step.Outcome.err(node)
		}
		if step.Progress != nil {
			report(*step.Progress)
		}
	}
}
