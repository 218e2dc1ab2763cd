package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/internal/port"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runner"
)

// The times and limits of requests to the model's server.
const (
	setupInterval  = 100 * time.Millisecond // between two checks during setup
	callTime       = 30 * time.Second       // limit of a request that is answered at once
	healthInterval = 5 * time.Second        // between two checks during a prediction
	maxReply       = 1 << 30                // bytes of a response, which may contain files
)

// cog is a client of the HTTP server of an image built with Cog
// (github.com/replicate/cog, docs/http.md there). Each job is an asynchronous prediction:
// the server reports to a webhook on the loopback address.
type cog struct {
	m      *model
	server *resident
	base   string // prefix of its URLs
	client *http.Client
	desk   *callbackServer
	schema cogSchema
	count  int // number of predictions so far
}

// newCog starts the image's server and waits until the model is set up.
func newCog(ctx context.Context, m *model) (_ *cog, err error) {
	c := &cog{m: m, client: &http.Client{Transport: new(http.Transport)}}
	if c.desk, err = newCallbackServer(); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		c.desk.close()
		return nil, err
	}
	return c, nil
}

// start starts the image's server and waits until the model is set up.
func (c *cog) start(ctx context.Context) error {
	portNumber, err := port.Free("127.0.0.1")
	if err != nil {
		return err
	}
	c.base = "http://127.0.0.1:" + strconv.Itoa(portNumber)
	if c.server, err = c.m.startResident(nil, "PORT="+strconv.Itoa(portNumber)); err != nil {
		c.server = nil
		return fmt.Errorf("start the model's server: %w", err)
	}
	if err = c.awaitSetup(ctx); err == nil {
		err = c.readSchema(ctx)
	}
	if err != nil {
		c.end()
	}
	return err
}

// end stops the server, which may have ended. The next job starts it again.
func (c *cog) end() {
	if c.server != nil {
		c.server.stop()
		c.server = nil
	}
	c.client.CloseIdleConnections()
}

func (c *cog) stop() {
	c.end()
	c.desk.close()
}

// cogHealth is the response to GET /health-check.
type cogHealth struct {
	Status string `json:"status"`
	Setup  struct {
		Status string `json:"status"`
		Logs   string `json:"logs"`
	} `json:"setup"`
	HealthError string `json:"user_healthcheck_error"`
}

// awaitSetup waits until the model is ready, however long it takes.
func (c *cog) awaitSetup(ctx context.Context) error {
	for {
		var h cogHealth
		status, err := c.call(ctx, http.MethodGet, "/health-check", nil, nil, &h)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && status == http.StatusNotFound:
			return errors.New("its server has no /health-check; is the image built with a Cog older than 0.6?")
		case err != nil || status != http.StatusOK: // it does not listen yet
		case h.Status == "READY" || h.Status == "BUSY":
			return nil
		case h.Status == "SETUP_FAILED" || h.Status == "DEFUNCT":
			return fmt.Errorf("the model's setup failed: %s", cmp.Or(logtext.Cause(h.Setup.Logs), logtext.Cause(c.server.out.stderr.String()), "it printed no reason"))
		}
		select {
		case <-c.server.child.exited:
			return fmt.Errorf("the model's server ended while it was set up: %w", c.server.failed())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(setupInterval):
		}
	}
}

// call sends one request with a time limit, and decodes the JSON response into reply.
func (c *cog) call(ctx context.Context, method, path string, header map[string]string, body, reply any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return c.send(ctx, method, path, header, body, reply)
}

func (c *cog) send(ctx context.Context, method, path string, header map[string]string, body, reply any) (status int, err error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return 0, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := c.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxReply))
	if err != nil {
		return response.StatusCode, err
	}
	if err := json.Unmarshal(text, reply); err != nil && response.StatusCode < 300 {
		return response.StatusCode, fmt.Errorf("%s %s: the response is not JSON: %w", method, path, err)
	}
	return response.StatusCode, nil
}

// prediction is the server's report about a prediction.
type prediction struct {
	ID     string          `json:"id"`
	Status string          `json:"status"`
	Output json.RawMessage `json:"output"`
	Error  string          `json:"error"`
	Logs   string          `json:"logs"`
	Detail json.RawMessage `json:"detail"` // of an error response
}

func (p *prediction) over() bool {
	return p.Status == "succeeded" || p.Status == "failed" || p.Status == "canceled"
}

// process processes a job by one prediction. A server that has ended is started again. See
// runner.Handler.
func (c *cog) process(ctx context.Context, j runner.Job) error {
	if c.server != nil && ended(c.server) {
		c.end()
	}
	if c.server == nil {
		if err := c.start(ctx); err != nil {
			return fmt.Errorf("start the model's server again: %w", err)
		}
	}
	ctx, cancel := c.m.bounded(ctx)
	defer cancel()
	v, err := c.desk.receive(j.InputDir)
	if err != nil {
		return err
	}
	defer v.close()
	input, err := c.schema.input(j, v)
	if err != nil {
		return err
	}
	c.count++
	id := fmt.Sprintf("%s-%d", j.ID, c.count)
	watch := &logWatch{job: j}
	c.server.during(nil)
	p, err := c.predict(ctx, id, input, v, watch)
	c.server.out.settle() // so that all output of this job is in its log
	if err != nil && !errors.Is(err, errRefused) {
		// The prediction may still run, and must not do so in parallel with the next one.
		c.end()
	}
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return c.m.stopped(ctx, watch.seen)
	case err != nil:
		return err
	case p.Status == "failed":
		message := cmp.Or(p.Error, "the prediction failed without a message")
		return &job.Failure{Message: message, Type: "PredictionFailed", Traceback: logtext.Tail(watch.seen)}
	case p.Status == "canceled":
		if ctx.Err() != nil {
			return c.m.stopped(ctx, watch.seen)
		}
		return &job.Failure{Message: "Cancelled: the model's server cancelled the prediction", Type: messenger.CancelledType}
	}
	return c.schema.output(j, p.Output)
}

// errRefused is wrapped by predict's error if the server has not begun the prediction.
var errRefused = errors.New("the model's server refused the prediction")

// predict starts a prediction and waits for its end. When ctx ends it cancels the
// prediction. After an error that does not wrap errRefused, the prediction may still run.
func (c *cog) predict(ctx context.Context, id string, input map[string]any, v *callbacks, watch *logWatch) (*prediction, error) {
	body := map[string]any{
		"id": id, "input": input, "webhook": v.webhook(),
		"webhook_events_filter": []string{"start", "output", "logs", "completed"},
	}
	path := "/predictions/" + url.PathEscape(id)
	var p prediction
	// The request is not interrupted, so that it is known whether there is something to cancel.
	status, err := c.call(context.WithoutCancel(ctx), http.MethodPut, path, map[string]string{"Prefer": "respond-async"}, body, &p)
	switch {
	case err != nil:
		return nil, c.requestError(ctx, err)
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed: // an old server
		p = prediction{}
		delete(body, "webhook")
		delete(body, "webhook_events_filter")
		if status, err = c.send(ctx, http.MethodPost, "/predictions", nil, body, &p); err != nil {
			return nil, c.requestError(ctx, err)
		}
	}
	switch {
	case status == http.StatusUnprocessableEntity, status == http.StatusBadRequest:
		return nil, fmt.Errorf("%w: %w", errRefused, &job.Failure{Message: "InvalidInput: " + explainDetail(&p), Type: "InvalidInput"})
	case status >= 300:
		return nil, fmt.Errorf("%w with status %d: %s", errRefused, status, cmp.Or(explainDetail(&p), "it gives no reason"))
	}
	watch.note(p.Logs)
	if p.over() {
		return &p, nil
	}
	health := time.NewTicker(healthInterval)
	defer health.Stop()
	idle := 0 // how often the server has reported that it has no prediction
	asked := ctx.Done()
	var overdue <-chan time.Time
	for {
		select {
		case p := <-v.updates:
			watch.note(p.Logs)
			if p.over() {
				return &p, nil
			}
		case <-c.server.child.exited:
			return nil, c.server.failed()
		case <-asked:
			asked, overdue = nil, time.After(grace)
			calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			_, _ = c.call(calling, http.MethodPost, path+"/cancel", nil, nil, &struct{}{})
			cancel()
		case <-overdue:
			return nil, ctx.Err()
		case <-health.C:
			var h cogHealth
			if status, err := c.call(ctx, http.MethodGet, "/health-check", nil, nil, &h); err != nil || status != http.StatusOK {
				continue
			}
			switch h.Status {
			case "DEFUNCT":
				return nil, &job.Failure{Message: "the model's server cannot go on (DEFUNCT)", Type: "PredictionFailed", Traceback: logtext.Tail(watch.seen)}
			case "READY":
				if idle++; idle == 3 {
					return nil, errors.New("the model's server is done with the prediction and did not report it")
				}
			default:
				idle = 0
			}
		}
	}
}

// requestError explains a failed request by the end of ctx or of the server, if one of
// them is the cause.
func (c *cog) requestError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-c.server.child.exited:
		return c.server.failed()
	case <-time.After(time.Second): // the server may be ending
		return fmt.Errorf("the model's server does not answer: %w", err)
	}
}

// explainDetail returns the text of an error response: Cog's error, or FastAPI's list.
func explainDetail(p *prediction) string {
	if p.Error != "" {
		return p.Error
	}
	var list []struct {
		Where []any  `json:"loc"`
		What  string `json:"msg"`
	}
	if json.Unmarshal(p.Detail, &list) == nil && len(list) > 0 {
		var texts []string
		for _, d := range list {
			var where []string
			for _, w := range d.Where {
				where = append(where, fmt.Sprint(w))
			}
			texts = append(texts, strings.TrimPrefix(strings.Join(where, "."), "body.")+": "+d.What)
		}
		return strings.Join(texts, "; ")
	}
	var text string
	if json.Unmarshal(p.Detail, &text) == nil {
		return text
	}
	return string(p.Detail)
}

// logWatch sends the new lines of a prediction's log as events. Each report contains the
// complete log so far.
type logWatch struct {
	job  runner.Job
	seen string
}

// bar matches a progress bar of tqdm.
var bar = regexp.MustCompile(`^\s*(?:([^|]*?):?\s+)?(\d{1,3})%\s*\|.*\|`)

func (w *logWatch) note(logs string) {
	fresh := logs
	switch {
	case len(logs) <= len(w.seen):
		return
	case strings.HasPrefix(logs, w.seen):
		fresh = logs[len(w.seen):]
	}
	w.seen = logs
	for _, line := range strings.FieldsFunc(fresh, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if m := bar.FindStringSubmatch(line); m != nil {
			if percent, err := strconv.Atoi(m[2]); err == nil {
				w.job.Progress(float64(percent)/100, m[1])
			}
			continue
		}
		sendLine(w.job, line)
	}
}

// callbackServer is an HTTP server on the loopback address from which the model's server
// fetches a job's files, and to which it reports on predictions. Its URLs contain a random
// name for each job, so that no other process can access them.
type callbackServer struct {
	server  *http.Server
	base    string
	serving sync.WaitGroup
	mu      sync.Mutex
	jobs    map[string]*callbacks
}

func newCallbackServer() (*callbackServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &callbackServer{base: "http://" + l.Addr().String(), jobs: make(map[string]*callbacks)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{job}/webhook", d.webhook)
	mux.HandleFunc("GET /{job}/files/{name...}", d.file)
	d.server = &http.Server{Handler: mux, ReadHeaderTimeout: callTime}
	d.serving.Go(func() { _ = d.server.Serve(l) })
	return d, nil
}

func (d *callbackServer) close() {
	_ = d.server.Close()
	d.serving.Wait()
}

func (d *callbackServer) find(r *http.Request) *callbacks {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.jobs[r.PathValue("job")]
}

func (d *callbackServer) webhook(w http.ResponseWriter, r *http.Request) {
	v := d.find(r)
	if v == nil {
		http.NotFound(w, r)
		return
	}
	var p prediction
	if err := json.NewDecoder(io.LimitReader(r.Body, maxReply)).Decode(&p); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case v.updates <- p:
	case <-v.closed:
	case <-r.Context().Done():
	}
}

func (d *callbackServer) file(w http.ResponseWriter, r *http.Request) {
	v := d.find(r)
	if v == nil {
		http.NotFound(w, r)
		return
	}
	http.ServeFileFS(w, r, v.files.FS(), r.PathValue("name"))
}
