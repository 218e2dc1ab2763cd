// Package cogtest replaces the server of an image that was built with Cog: it has Cog's HTTP
// API as docs/http.md of github.com/replicate/cog and the
// OpenAPI document that Cog generates describe it.
package cogtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// Model is the model of a server.
type Model struct {
	// Setup is run before the server is READY; what it prints with log is in the
	// health check, and an error is SETUP_FAILED.
	Setup func(log func(string)) error
	// Input and Output are the schemas of the model's inputs, by name, and of its
	// output, in JSON; Required are the names of those that have no default.
	Input    string
	Required []string
	Output   string
	// Predict makes one prediction. Log adds to its logs; partial reports an
	// output so far. Ctx ends when it is cancelled, and ctx.Err() says so.
	Predict func(ctx context.Context, input map[string]any, log func(string), partial func(any)) (any, error)
	// Old means a server without idempotent and asynchronous predictions.
	Old bool
}

// prediction is a prediction in the format of the API.
type prediction struct {
	ID      string         `json:"id"`
	Status  string         `json:"status"`
	Output  any            `json:"output,omitempty"`
	Error   string         `json:"error,omitempty"`
	Logs    string         `json:"logs"`
	Metrics map[string]any `json:"metrics,omitempty"`
}

type request struct {
	ID      string         `json:"id"`
	Input   map[string]any `json:"input"`
	Webhook string         `json:"webhook"`
	Filter  []string       `json:"webhook_events_filter"`
}

// Serve listens on the port in the environment variable PORT, by default 5000, and serves
// the model until ctx ends.
func Serve(ctx context.Context, m Model) error {
	port := os.Getenv("PORT")
	if port == "" {
		port = "5000"
	}
	l, err := net.Listen("tcp", net.JoinHostPort("0.0.0.0", port))
	if err != nil {
		return err
	}
	s := &server{m: m, status: "STARTING", running: make(map[string]context.CancelFunc)}
	go s.setUp() // ends with the model's setup
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

type server struct {
	m Model

	mu        sync.Mutex
	status    string
	setupLogs string
	running   map[string]context.CancelFunc
}

func (s *server) setUp() {
	var err error
	if s.m.Setup != nil {
		err = s.m.Setup(func(text string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.setupLogs += text
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = "READY"
	if err != nil {
		s.status = "SETUP_FAILED"
		s.setupLogs += err.Error() + "\n"
	}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health-check", s.health)
	mux.HandleFunc("GET /openapi.json", s.schema)
	mux.HandleFunc("POST /predictions", s.predict)
	if !s.m.Old {
		mux.HandleFunc("PUT /predictions/{id}", s.predict)
		mux.HandleFunc("POST /predictions/{id}/cancel", s.cancel)
	}
	return mux
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, setup := s.status, map[string]string{"READY": "succeeded", "STARTING": "starting", "SETUP_FAILED": "failed"}[s.status]
	if status == "READY" && len(s.running) > 0 {
		status = "BUSY"
	}
	reply(w, http.StatusOK, map[string]any{
		"status": status,
		"setup":  map[string]string{"started_at": "2025-01-01T00:00:00.000000+00:00", "status": setup, "logs": s.setupLogs},
	})
}

func (s *server) schema(w http.ResponseWriter, _ *http.Request) {
	required := s.m.Required
	if required == nil {
		required = []string{}
	}
	reply(w, http.StatusOK, map[string]any{
		"openapi": "3.0.2", "info": map[string]string{"title": "Cog", "version": "0.1.0"},
		"components": map[string]any{"schemas": map[string]any{
			"Input":  map[string]any{"title": "Input", "type": "object", "properties": json.RawMessage(s.m.Input), "required": required},
			"Output": json.RawMessage(s.m.Output),
		}},
	})
}

func (s *server) predict(w http.ResponseWriter, r *http.Request) {
	var q request
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		reply(w, http.StatusUnprocessableEntity, map[string]any{"detail": []any{map[string]any{"loc": []any{"body"}, "msg": err.Error(), "type": "value_error"}}})
		return
	}
	if id := r.PathValue("id"); id != "" {
		if q.ID != "" && q.ID != id {
			reply(w, http.StatusUnprocessableEntity, map[string]any{"detail": []any{map[string]any{"loc": []any{"body", "id"}, "msg": "prediction ID must match the ID supplied in the URL", "type": "value_error"}}})
			return
		}
		q.ID = id
	}
	for _, name := range s.m.Required {
		if _, ok := q.Input[name]; !ok {
			reply(w, http.StatusUnprocessableEntity, map[string]any{"detail": []any{map[string]any{"loc": []any{"body", "input", name}, "msg": "Field required", "type": "value_error"}}})
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	switch {
	case s.status != "READY":
		s.mu.Unlock()
		cancel()
		reply(w, http.StatusServiceUnavailable, map[string]any{"error": "Setup has not finished yet", "status": "failed"})
		return
	case len(s.running) > 0:
		s.mu.Unlock()
		cancel()
		reply(w, http.StatusConflict, map[string]any{"error": "At capacity - all prediction slots busy", "status": "failed"})
		return
	}
	s.running[q.ID] = cancel
	s.mu.Unlock()
	if r.Header.Get("Prefer") == "respond-async" && !s.m.Old {
		go s.work(ctx, q) // ends with the prediction
		reply(w, http.StatusAccepted, map[string]any{"id": q.ID, "status": "starting"})
		return
	}
	reply(w, http.StatusOK, s.work(ctx, q))
}

// work runs a prediction and reports its result.
func (s *server) work(ctx context.Context, q request) prediction {
	p := prediction{ID: q.ID, Status: "processing"}
	s.report(q, "start", p)
	output, err := s.m.Predict(ctx, q.Input, func(text string) {
		fmt.Print(text) // as Cog does
		p.Logs += text
		s.report(q, "logs", p)
	}, func(partial any) {
		p.Output = partial
		s.report(q, "output", p)
	})
	p.Output, p.Metrics = output, map[string]any{"predict_time": 0.1}
	switch {
	case ctx.Err() != nil:
		p.Status, p.Output = "canceled", nil
	case err != nil:
		p.Status, p.Output, p.Error = "failed", nil, err.Error()
	default:
		p.Status = "succeeded"
	}
	s.mu.Lock()
	s.running[q.ID]()
	delete(s.running, q.ID)
	s.mu.Unlock()
	s.report(q, "completed", p)
	return p
}

func (s *server) report(q request, event string, p prediction) {
	if q.Webhook == "" || len(q.Filter) > 0 && !slices.Contains(q.Filter, event) {
		return
	}
	text, err := json.Marshal(p)
	if err != nil {
		return
	}
	response, err := http.Post(q.Webhook, "application/json", bytes.NewReader(text))
	if err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

func (s *server) cancel(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cancel, ok := s.running[r.PathValue("id")]
	if !ok {
		reply(w, http.StatusNotFound, map[string]any{})
		return
	}
	cancel()
	reply(w, http.StatusOK, map[string]any{})
}

// Fetch reads a File or Path input: a data URL or an HTTP one.
func Fetch(value any) ([]byte, error) {
	address, ok := value.(string)
	if !ok {
		return nil, fmt.Errorf("%v is not a URL", value)
	}
	if data, ok := decodeDataURL(address); ok {
		return data, nil
	}
	response, err := http.Get(address)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", address, response.Status)
	}
	return io.ReadAll(response.Body)
}
