package fleet

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// Local is what a node provides to other nodes.
type Local interface {
	Sheep(ctx context.Context) []job.Sheep
	GPUs(ctx context.Context) job.GPUs
	// Models returns the models on its disk. The error is *job.ModelError.
	Models(ctx context.Context) ([]job.KeptModel, error)
	// PullModel fetches a model for a sheep or, without a name, for all that fetch
	// models. It calls report from one goroutine at a time, and not after it has
	// returned. The error is *job.Invalid, *job.UnknownSheep, job.ErrNoModels or
	// *job.ModelError.
	PullModel(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error
	// RemoveModel removes a model from the disk. The error is *job.Invalid,
	// *job.ModelNeeded, job.ErrNoModels or *job.ModelError, of class
	// errdefs.ErrNotFound if it does not exist.
	RemoveModel(ctx context.Context, m job.Model) error
	// Logs opens the log of a sheep. The error is *job.UnknownSheep or job.ErrNoLog.
	Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error)
	// AttemptLog opens the log of an attempt of this node. With Follow it ends when the
	// attempt has ended. The error is job.ErrNoJobLog.
	AttemptLog(ctx context.Context, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error)
	// OrderSheep sends an order to a sheep, and returns when it has been executed. The
	// error is *job.UnknownSheep, *job.SheepState, *job.Invalid, *job.Untrusted, *job.ModelError
	// or job.ErrDraining.
	OrderSheep(ctx context.Context, sheep string, o job.Order) error
}

// stall is how long a log reader may block before its connection is closed.
const stall = time.Minute

// handler answers other nodes.
type handler struct {
	local Local
	log   *slog.Logger
}

// Handler answers the requests of other nodes, whose paths begin with Prefix, and passes
// all others on to next. Requests without the secret are answered 401; if no secret is
// configured, all are passed on.
func Handler(local Local, secret string, next http.Handler, log *slog.Logger) http.Handler {
	if secret == "" {
		return next
	}
	h := &handler{local, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+sheepPath, func(w http.ResponseWriter, r *http.Request) { h.answer(w, r, local.Sheep(r.Context())) })
	mux.HandleFunc("GET "+gpusPath, func(w http.ResponseWriter, r *http.Request) { h.answer(w, r, local.GPUs(r.Context())) })
	mux.HandleFunc("GET "+modelsPath, h.models)
	mux.HandleFunc("POST "+pullPath, h.pull)
	mux.HandleFunc("POST "+removePath, h.remove)
	mux.HandleFunc("GET "+sheepPath+"/{sheep}/logs", h.sheepLog)
	mux.HandleFunc("POST "+sheepPath+"/{sheep}/order", h.order)
	mux.HandleFunc("GET "+Prefix+"jobs/{id}/runs/{run}/attempts/{attempt}/log", h.attemptLog)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, Prefix) {
			next.ServeHTTP(w, r)
			return
		}
		shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), scheme)
		if !ok || subtle.ConstantTimeCompare([]byte(shown), []byte(secret)) != 1 {
			log.Warn("A request for nodes of the fleet does not show their secret", "from", r.RemoteAddr)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (h *handler) answer(w http.ResponseWriter, r *http.Request, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil && r.Context().Err() == nil {
		h.log.Debug("Cannot answer another node", "path", r.URL.Path, "error", err)
	}
}

func (h *handler) sheepLog(w http.ResponseWriter, r *http.Request) {
	h.serveLog(w, r, func(q job.LogQuery) (io.ReadCloser, error) {
		return h.local.Logs(r.Context(), r.PathValue("sheep"), q)
	})
}

// order answers with the result of an order. The headers are sent at once, as the order may
// take long.
func (h *handler) order(w http.ResponseWriter, r *http.Request) {
	var o job.Order
	if err := json.NewDecoder(io.LimitReader(r.Body, maxOrder)).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	begin(w)
	h.answer(w, r, h.outcomeOf(r, h.local.OrderSheep(r.Context(), r.PathValue("sheep"), o)))
}

// begin sends the headers of an answer whose body may take long.
func begin(w http.ResponseWriter) *http.ResponseController {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // not every writer has deadlines
	_ = control.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()
	return control
}

// outcomeOf returns the result of an order in the form that is sent to the other node.
func (h *handler) outcomeOf(r *http.Request, err error) outcome {
	if err == nil {
		return outcome{}
	}
	refused, ok := refusalOf(err)
	if !ok {
		if r.Context().Err() == nil {
			h.log.Error("An order of another node failed", "path", r.URL.Path, "error", err)
		}
		refused = refusal{Code: codeFault}
	}
	return outcome{Refused: &refused}
}

func (h *handler) models(w http.ResponseWriter, r *http.Request) {
	models, err := h.local.Models(r.Context())
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	h.answer(w, r, models)
}

// pull answers with the progress, one line per step, and then with the result.
func (h *handler) pull(w http.ResponseWriter, r *http.Request) {
	var o pullOrder
	if err := json.NewDecoder(io.LimitReader(r.Body, maxOrder)).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	control := begin(w)
	told := json.NewEncoder(w)
	err := h.local.PullModel(r.Context(), o.Model, o.Sheep, func(p job.PullProgress) {
		_ = control.SetWriteDeadline(time.Now().Add(stall))
		_ = told.Encode(pullStep{Progress: &p}) // a disconnect ends the request's context
		_ = control.Flush()
		_ = control.SetWriteDeadline(time.Time{})
	})
	out := h.outcomeOf(r, err)
	h.answer(w, r, pullStep{Outcome: &out})
}

func (h *handler) remove(w http.ResponseWriter, r *http.Request) {
	var o removeOrder
	if err := json.NewDecoder(io.LimitReader(r.Body, maxOrder)).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	begin(w)
	h.answer(w, r, h.outcomeOf(r, h.local.RemoveModel(r.Context(), o.Model)))
}

func (h *handler) attemptLog(w http.ResponseWriter, r *http.Request) {
	run, err := strconv.Atoi(r.PathValue("run"))
	attempt, err2 := strconv.Atoi(r.PathValue("attempt"))
	if err != nil || err2 != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.serveLog(w, r, func(q job.LogQuery) (io.ReadCloser, error) {
		return h.local.AttemptLog(r.Context(), job.ID(r.PathValue("id")), run, attempt, q)
	})
}

// serveLog answers with a log while it is written.
func (h *handler) serveLog(w http.ResponseWriter, r *http.Request, open func(job.LogQuery) (io.ReadCloser, error)) {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	log, err := open(q)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer log.Close()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // not every writer has deadlines
	w.WriteHeader(http.StatusOK)
	_ = control.Flush() // so that the node knows that there is a log
	buffer := make([]byte, 32<<10)
	for {
		n, err := log.Read(buffer)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(stall))
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			_ = control.Flush()
		}
		switch {
		case err == nil:
			_ = control.SetWriteDeadline(time.Time{})
		case errors.Is(err, io.EOF):
			return
		default: // the reader must not mistake it for the end
			if r.Context().Err() == nil {
				h.log.Error("The transfer of a log to another node was interrupted", "path", r.URL.Path, "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}
}

// refuse answers with an error.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if refused, ok := refusalOf(err); ok {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		h.answer(w, r, refused)
		return
	}
	if r.Context().Err() == nil {
		h.log.Error("A request of another node failed", "path", r.URL.Path, "error", err)
	}
	w.WriteHeader(http.StatusInternalServerError)
}
