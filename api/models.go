package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	"github.com/iterait/shepherd/job"
)

// ModelService looks at the models that are kept for sheep, and changes which are.
type ModelService interface {
	// PullModel pulls a model and returns when it is complete. It calls report with the
	// progress, from one goroutine at a time and not after it has returned. It returns
	// *job.Invalid, *job.UnknownNode, *job.UnknownSheep, *job.Unavailable,
	// job.ErrNoModels and *job.ModelError.
	PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error

	// Models is every model that is kept. It returns *job.ModelError.
	Models(ctx context.Context) (job.KeptModels, error)

	// Usual is how long the last jobs of a model took; ok is false where none is known.
	Usual(ctx context.Context, m job.Model) (_ job.Usual, ok bool, err error)

	// RemoveModel removes one, of a node or, where that is empty, of all. It returns
	// *job.Invalid, *job.UnknownNode, *job.Unavailable, *job.ModelNeeded,
	// job.ErrNoModels and *job.ModelError, of class NotFound when it is not kept.
	RemoveModel(ctx context.Context, m job.Model, node string) error
}

// modelServer serves models.
type modelServer struct {
	answers
	bodyLimits
	service ModelService
}

// ListModels answers GET /models.
func (s *modelServer) ListModels(w http.ResponseWriter, r *http.Request) {
	kept, err := s.service.Models(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := ModelList{Models: []KeptModel{}}
	for _, m := range kept.Models {
		usual, err := usualOf(r.Context(), s.service, m.Model)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		answer.Models = append(answer.Models, KeptModel{
			Name: m.Model.Name, Version: m.Model.Version, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, OwnSize: m.Own, LastUsedAt: job.FormatTime(m.LastUsed), InUse: m.InUse, Usual: usual, Node: orNull(m.Node),
		})
	}
	if len(kept.Unanswered) > 0 {
		unanswered := []UnansweredNode{}
		for _, n := range kept.Unanswered {
			unanswered = append(unanswered, UnansweredNode{Name: n.Name, Problem: n.Problem})
		}
		answer.Unanswered = &unanswered
	}
	s.answer(w, r, http.StatusOK, answer)
}

// usualTimes is the part of a ModelService that knows how long jobs take.
type usualTimes interface {
	Usual(ctx context.Context, m job.Model) (_ job.Usual, ok bool, err error)
}

// usualOf is how long the last jobs of a model took, nil where none is known.
func usualOf(ctx context.Context, history usualTimes, m job.Model) (*Usual, error) {
	u, ok, err := history.Usual(ctx, m)
	if err != nil || !ok {
		return nil, err
	}
	return &Usual{Jobs: u.Jobs, Low: u.Low.Seconds(), Likely: u.Likely.Seconds(), High: u.High.Seconds(), Load: secondsOrNull(u.Load)}, nil
}

// RemoveModel answers DELETE /models/{model}.
func (s *modelServer) RemoveModel(w http.ResponseWriter, r *http.Request, raw string, params RemoveModelParams) {
	text, err := url.PathUnescape(raw)
	var m job.Model
	if err == nil {
		m, err = parseModel(text)
	} else {
		err = &job.Invalid{Field: "model", Problem: "is not a valid percent-encoding"}
	}
	if err == nil {
		err = s.service.RemoveModel(r.Context(), m, nodeOf(params.Node))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// PullModel answers POST /models/pull.
func (s *modelServer) PullModel(w http.ResponseWriter, r *http.Request, params PullModelParams) {
	room := lease{of: s.bodies}
	defer room.giveBack()
	body, err := readBody(w, r, s.maxBody, &room)
	order := job.PullOrder{Node: nodeOf(params.Node)}
	var told bool
	if err == nil {
		order.Model, order.Sheep, err = decodePull(body)
	}
	if err == nil {
		told, err = flag("progress", params.Progress)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	unbounded(w)
	if told {
		s.pullWithProgress(w, r, order)
		return
	}
	if err := s.service.PullModel(r.Context(), order, func(job.PullProgress) {}); err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// pullWithProgress pulls a model and streams its progress. An error before the first
// report is answered with its status. A slow client gets the latest report only.
func (s *modelServer) pullWithProgress(w http.ResponseWriter, r *http.Request, o job.PullOrder) {
	latest := make(chan job.PullProgress, 1)
	done := make(chan error, 1)
	go func() {
		defer func() {
			if reason := recover(); reason != nil { // it is not in the guard's reach here
				done <- fmt.Errorf("panic while pulling a model: %v\n%s", reason, debug.Stack())
			}
		}()
		done <- s.service.PullModel(r.Context(), o, func(p job.PullProgress) {
			select {
			case <-latest:
			default:
			}
			latest <- p // the only sender: there is room
		})
	}()
	begun := false
	tell := func(p PullProgress) {
		if !begun {
			begun = true
			h := w.Header()
			h.Set("Content-Type", "application/x-ndjson")
			h.Set("X-Accel-Buffering", "no")
			h.Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusOK)
		}
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Now().Add(stall))
		// A client that has left ends the request's context, and so the pull.
		_ = json.NewEncoder(w).Encode(p)
		_ = control.Flush()
		_ = control.SetWriteDeadline(time.Time{})
	}
	for {
		select {
		case p := <-latest:
			tell(progress(p))
		case err := <-done:
			select {
			case p := <-latest: // the last one counts
				if begun || err == nil {
					tell(progress(p))
				}
			default:
			}
			switch {
			case err == nil:
				ok := true
				tell(PullProgress{Text: "model " + o.Model.String() + " is here", Success: &ok})
			case !begun:
				s.fail(w, r, err)
			default:
				if ended := context.Cause(r.Context()); ended != nil {
					err = ended // the daemon is going, and says so
				}
				c, message := classify(err)
				if c.ours {
					s.log.WarnContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
				}
				tell(PullProgress{Text: message, Error: &message})
			}
			return
		}
	}
}

func progress(p job.PullProgress) PullProgress {
	out := PullProgress{Text: p.Text}
	if p.Total > 0 {
		rate := int64(p.Rate)
		out.Done, out.Total, out.Rate = &p.Done, &p.Total, &rate
	}
	return out
}
