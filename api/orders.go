package api

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/iterait/shepherd/job"
)

// noSheep is the *job.UnknownSheep of an address, which is answered 404; one of a body is
// answered 400.
type noSheep struct{ *job.UnknownSheep }

// DrainSheep answers POST /sheep/{sheep_id}/drain.
func (s *sheepServer) DrainSheep(w http.ResponseWriter, r *http.Request, sheep string) {
	s.order(w, r, sheep, job.Order{Do: job.Drain})
}

// ResumeSheep answers POST /sheep/{sheep_id}/resume.
func (s *sheepServer) ResumeSheep(w http.ResponseWriter, r *http.Request, sheep string) {
	s.order(w, r, sheep, job.Order{Do: job.Resume})
}

// RestartSheep answers POST /sheep/{sheep_id}/restart.
func (s *sheepServer) RestartSheep(w http.ResponseWriter, r *http.Request, sheep string, params RestartSheepParams) {
	o := job.Order{Do: job.Restart}
	if params.Drain != nil && *params.Drain == "" {
		o.Drain = job.UsualDrain
	} else if params.Drain != nil {
		var err error
		if o.Drain, err = time.ParseDuration(*params.Drain); err != nil || o.Drain < 0 {
			s.fail(w, r, &job.Invalid{Field: "drain", Problem: fmt.Sprintf("must be a duration such as 30s or 10m, not %q", bounded(*params.Drain))})
			return
		}
	}
	s.order(w, r, sheep, o)
}

// LoadSheep answers POST /sheep/{sheep_id}/load.
func (s *sheepServer) LoadSheep(w http.ResponseWriter, r *http.Request, sheep string) {
	room := lease{of: s.bodies}
	body, err := readBody(w, r, s.maxBody, &room)
	o := job.Order{Do: job.Load}
	if err == nil {
		o.Model, err = decodeLoad(body)
	}
	room.giveBack()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.order(w, r, sheep, o)
}

func (s *sheepServer) order(w http.ResponseWriter, r *http.Request, rawSheep string, o job.Order) {
	sheep, err := url.PathUnescape(rawSheep)
	if err != nil {
		sheep = rawSheep // which no sheep is called
	}
	unbounded(w)
	err = s.service.OrderSheep(r.Context(), sheep, o)
	if unknown, ok := asError[*job.UnknownSheep](err); ok {
		err = noSheep{unknown}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// inState matches one of the troubles of sheep.
func inState(is job.SheepTrouble) func(error) (string, bool) {
	return func(err error) (string, bool) {
		state, ok := asError[*job.SheepState](err)
		if !ok {
			return "", false
		}
		return state.Error(), state.Is == is
	}
}
