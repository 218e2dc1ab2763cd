package api

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gorilla/mux"
	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api/manual"
	"github.com/iterait/shepherd/api/page"
	"github.com/iterait/shepherd/api/ui"
)

// methods are those of all routes, in the order of an Allow header.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete}

// handlers are the operations of the contract, by what they are about: together they are
// the generated ServerInterface.
type handlers struct {
	*submitServer
	*jobServer
	*groupServer
	*uploadServer
	*fileServer
	*logServer
	*eventServer
	*flockServer
	*sheepServer
	*modelServer
	*gpuServer
	*nodeServer
	*webhookServer
	*sessionServer
	*daemonServer
	documents
}

var _ ServerInterface = handlers{}

// newHandlers gives each group of operations what it needs of c, whose defaults are set.
func newHandlers(c Config, a answers, gate *gatekeeper) handlers {
	var (
		shown  = views{debug: c.Debug}
		bodies = bodyLimits{maxBody: c.MaxBody, bodies: semaphore.NewWeighted(c.BodyMemory)}
		ids    = jobIDs{owners: c.Service}
		wait   = waiter{jobs: c.Service, maxWait: c.MaxWait, inServer: c.waitersInServer, waiting: new(atomic.Int64)}
		submit = submitter{service: c.Service, webhooks: c.Webhooks}
		forms  = formLimits{maxUpload: c.MaxUpload, uploadStall: c.UploadStall}
	)
	return handlers{
		submitServer:  &submitServer{answers: a, views: shown, bodyLimits: bodies, formLimits: forms, waiter: wait, submitter: submit},
		jobServer:     &jobServer{answers: a, views: shown, jobIDs: ids, waiter: wait, service: c.Service},
		groupServer:   &groupServer{answers: a, views: shown, bodyLimits: bodies, submitter: submit, groups: c.Service},
		uploadServer:  &uploadServer{answers: a, bodyLimits: bodies, service: c.Service},
		fileServer:    &fileServer{answers: a, jobIDs: ids, service: c.Service},
		logServer:     &logServer{answers: a, jobIDs: ids, service: c.Service},
		eventServer:   &eventServer{answers: a, views: shown, jobIDs: ids, service: c.Service},
		flockServer:   &flockServer{answers: a, views: shown, service: c.Service, gpus: c.GPUs},
		sheepServer:   &sheepServer{answers: a, bodyLimits: bodies, service: c.Service},
		modelServer:   &modelServer{answers: a, bodyLimits: bodies, service: c.Service},
		gpuServer:     &gpuServer{answers: a, gpus: c.GPUs},
		nodeServer:    &nodeServer{answers: a, nodes: c.Nodes},
		webhookServer: &webhookServer{answers: a, webhooks: c.Webhooks},
		sessionServer: &sessionServer{gatekeeper: gate, bodyLimits: bodies},
		daemonServer:  &daemonServer{answers: a, readiness: &readiness{check: c.Service.Checks}, version: Version{Version: c.Version, Commit: c.Commit}, metrics: c.Metrics},
		documents:     newDocuments(),
	}
}

// newRouter binds the generated routes to h. Paths are matched as they were sent:
// an encoded slash stays inside its segment, and nothing is redirected to a
// "cleaned" path. Handlers decode the variables they get. What is found goes by gate,
// which learns of the pages' assets here; what is not found is start's.
func newRouter(h handlers, gate *gatekeeper, start *startPage) *mux.Router {
	router := mux.NewRouter().UseEncodedPath().SkipClean(true)
	router.NotFoundHandler = start
	router.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := allowed(router, r)
		w.Header().Set("Allow", strings.Join(append(allowed, http.MethodOptions), ", "))
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		gate.fail(w, r, errMethod)
	})
	HandlerWithOptions(h, GorillaServerOptions{BaseRouter: router, ErrorHandlerFunc: gate.badParameter})

	// OpenAPI cannot express a variable with slashes in it, and pages' scripts and the
	// manual are not part of the contract.
	wrapper := &ServerInterfaceWrapper{Handler: h, ErrorHandlerFunc: gate.badParameter}
	router.HandleFunc("/jobs/{job_id}/result/{file:.+}", wrapper.GetResultFile).Methods(http.MethodGet)
	router.HandleFunc("/jobs/{job_id}/input/{file:.+}", wrapper.GetInputFile).Methods(http.MethodGet)
	router.HandleFunc("/models/{model:.+}", wrapper.RemoveModel).Methods(http.MethodDelete)
	for _, asset := range slices.Concat(ui.Assets(), page.Assets(), manual.Assets()) {
		gate.assets[asset.Path] = true
		router.Handle(asset.Path, asset).Methods(http.MethodGet)
	}

	serveHead(router)
	router.Use(gate.authorize) // of what was found: there is nothing to know of other addresses
	return router
}

// startPage answers where no route is: browsers with the start page, others with an error.
type startPage struct {
	answers
	gate    *access.Gate
	uploads interface{ UploadOrigin(host string) string } // the page may send files there
	index   *ui.Asset
}

func (p *startPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		w.Header().Add("Vary", "Accept")
	}
	if page.Wanted(r) {
		if caller, err := p.gate.Identify(r); err == nil && caller.May(access.Read) {
			w.Header().Set("Link", page.First)
		}
		p.index.WithPolicy(page.Policy(p.uploads.UploadOrigin(hostOf(r)))).ServeHTTP(w, r)
		return
	}
	p.fail(w, r, errNoRoute)
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
