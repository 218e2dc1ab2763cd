package api

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api/manual"
	"github.com/iterait/shepherd/api/page"
	"github.com/iterait/shepherd/api/ui"
	"github.com/iterait/shepherd/job"
)

// methods are those of all routes, in the order of an Allow header.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete}

// routes binds the generated routes to s. Paths are matched as they were sent:
// an encoded slash stays inside its segment, and nothing is redirected to a
// "cleaned" path. Handlers decode the variables they get.
func (s *server) routes() http.Handler {
	router := mux.NewRouter().UseEncodedPath().SkipClean(true)
	index := page.Index()
	router.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.Header().Add("Vary", "Accept")
		}
		if page.Wanted(r) {
			if caller, err := s.gate.Identify(r); err == nil && caller.May(access.Read) {
				w.Header().Set("Link", page.First)
			}
			index.WithPolicy(page.Policy(s.service.UploadOrigin(hostOf(r)))).ServeHTTP(w, r)
			return
		}
		s.fail(w, r, errNoRoute)
	})
	router.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := allowed(router, r)
		w.Header().Set("Allow", strings.Join(append(allowed, http.MethodOptions), ", "))
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		s.fail(w, r, errMethod)
	})
	HandlerWithOptions(s, GorillaServerOptions{BaseRouter: router, ErrorHandlerFunc: s.badParameter})

	// OpenAPI cannot express a variable with slashes in it, and pages' scripts and the
	// manual are not part of the contract.
	wrapper := &ServerInterfaceWrapper{Handler: s, ErrorHandlerFunc: s.badParameter}
	router.HandleFunc("/jobs/{job_id}/result/{file:.+}", wrapper.GetResultFile).Methods(http.MethodGet)
	router.HandleFunc("/jobs/{job_id}/input/{file:.+}", wrapper.GetInputFile).Methods(http.MethodGet)
	router.HandleFunc("/models/{model:.+}", wrapper.RemoveModel).Methods(http.MethodDelete)
	s.assets = make(map[string]bool)
	for _, asset := range slices.Concat(ui.Assets(), page.Assets(), manual.Assets()) {
		s.assets[asset.Path] = true
		router.Handle(asset.Path, asset).Methods(http.MethodGet)
	}

	serveHead(router)
	router.Use(s.authorize) // of what was found: there is nothing to know of other addresses
	return router
}

// serveHead lets HEAD reach every route that GET does; net/http drops the body.
func serveHead(router *mux.Router) {
	var templates []string
	var handlers []http.Handler
	_ = router.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		known, _ := route.GetMethods() // every route here has methods and a path
		template, _ := route.GetPathTemplate()
		if slices.Contains(known, http.MethodGet) {
			templates = append(templates, template)
			handlers = append(handlers, route.GetHandler())
		}
		return nil
	})
	for i, template := range templates {
		router.Handle(template, handlers[i]).Methods(http.MethodHead)
	}
}

// allowed is every method that r's path answers to.
func allowed(router *mux.Router, r *http.Request) []string {
	var known []string
	probe := *r
	for _, method := range methods {
		probe.Method = method
		var match mux.RouteMatch
		if router.Match(&probe, &match) && match.MatchErr == nil {
			known = append(known, method)
		}
	}
	return known
}

// badParameter answers requests whose parameters the generated code could not parse.
func (s *server) badParameter(w http.ResponseWriter, r *http.Request, err error) {
	name := "request"
	var format *InvalidParamFormatError
	var many *TooManyValuesForParamError
	switch {
	case errors.As(err, &format):
		name = format.ParamName
	case errors.As(err, &many):
		name = many.ParamName
	}
	s.fail(w, r, &job.Invalid{Field: name, Problem: "must be given once, as one value"})
}
