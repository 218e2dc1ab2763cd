package api

import (
	"net/http"
	"strings"

	"github.com/gorilla/mux"

	"github.com/iterait/shepherd/access"
)

// need is what an operation requires of its caller.
type need struct {
	// scope is empty where no credentials are required: liveness, the documentation, and
	// signing in and out.
	scope access.Scope
	// whole marks operations that show the data of all tenants, which no tenant may use.
	whole bool
	// job marks operations of the job API, which answer errors as problems (RFC 9457).
	// The original's routes keep its form.
	job bool
	// query marks operations that take parameters in the query. One that cannot be read is
	// refused: a filter, or a node, that is dropped would widen what the request is about.
	query bool
}

// needs are the requirements of the operations, by method and the contract's path.
// The contract has them as well (x-scope and x-whole), and a test compares the two.
// Operations that are not in the table require the scope admin.
var needs = map[string]need{
	"POST /start-job":                                {scope: access.Submit},
	"POST /jobs/{job_id}/cancel":                     {scope: access.Submit, job: true},
	"DELETE /jobs/{job_id}":                          {scope: access.Submit, job: true},
	"POST /jobs":                                     {scope: access.Submit, job: true},
	"GET /events":                                    {scope: access.Read, job: true, query: true},
	"GET /jobs/{job_id}/events":                      {scope: access.Read, job: true, query: true},
	"POST /jobs/{job_id}/retry":                      {scope: access.Submit, job: true},
	"POST /uploads":                                  {scope: access.Submit, job: true},
	"DELETE /uploads/{job_id}":                       {scope: access.Submit, job: true},
	"POST /uploads/{job_id}/addresses":               {scope: access.Submit, job: true},
	"POST /uploads/{job_id}/complete":                {scope: access.Submit, job: true},
	"POST /groups":                                   {scope: access.Submit, job: true},
	"GET /groups/{group_id}":                         {scope: access.Read, job: true},
	"POST /groups/{group_id}/cancel":                 {scope: access.Submit, job: true},
	"POST /groups/{group_id}/retry":                  {scope: access.Submit, job: true},
	"GET /jobs/{job_id}/explain":                     {scope: access.Read, job: true},
	"GET /jobs/{job_id}/inputs":                      {scope: access.Read, job: true, query: true},
	"GET /flock":                                     {scope: access.Read, job: true},
	"GET /jobs/{job_id}/outputs":                     {scope: access.Read, job: true, query: true},
	"GET /jobs/{job_id}/outputs.zip":                 {scope: access.Read, job: true},
	"GET /jobs/{job_id}/outputs.tar":                 {scope: access.Read, job: true},
	"GET /jobs":                                      {scope: access.Read, job: true, query: true},
	"GET /jobs/{job_id}":                             {scope: access.Read, job: true},
	"GET /jobs/{job_id}/status":                      {scope: access.Read},
	"GET /jobs/{job_id}/ready":                       {scope: access.Read},
	"GET /jobs/{job_id}/wait_ready":                  {scope: access.Read},
	"GET /jobs/{job_id}/logs":                        {scope: access.Read, job: true, query: true},
	"GET /jobs/{job_id}/result":                      {scope: access.Read},
	"GET /jobs/{job_id}/result/{file}":               {scope: access.Read},
	"GET /jobs/{job_id}/input":                       {scope: access.Read},
	"GET /jobs/{job_id}/input/{file}":                {scope: access.Read},
	"GET /status":                                    {scope: access.Read},
	"GET /sheep":                                     {scope: access.Read},
	"GET /sheep/{sheep_id}/logs":                     {scope: access.Read, whole: true, query: true},
	"POST /sheep/{sheep_id}/drain":                   {scope: access.Admin, job: true},
	"POST /sheep/{sheep_id}/resume":                  {scope: access.Admin, job: true},
	"POST /sheep/{sheep_id}/restart":                 {scope: access.Admin, job: true, query: true},
	"POST /sheep/{sheep_id}/load":                    {scope: access.Admin, job: true},
	"GET /gpus":                                      {scope: access.Read, whole: true, query: true},
	"GET /nodes":                                     {scope: access.Read, whole: true, job: true},
	"DELETE /nodes/{node}":                           {scope: access.Admin, whole: true, job: true},
	"POST /nodes/{node}/drain":                       {scope: access.Admin, whole: true, job: true},
	"POST /nodes/{node}/resume":                      {scope: access.Admin, whole: true, job: true},
	"GET /models":                                    {scope: access.Read, whole: true},
	"GET /webhooks/messages":                         {scope: access.Read, job: true, query: true},
	"POST /webhooks/messages/{message_id}/redeliver": {scope: access.Submit, job: true},
	"GET /webhooks/secret":                           {scope: access.Submit, job: true},
	"POST /models/pull":                              {scope: access.Admin, query: true},
	"DELETE /models/{model}":                         {scope: access.Admin, query: true},
	"GET /version":                                   {scope: access.Read},
	"GET /metrics":                                   {scope: access.Read, whole: true},
	"GET /session":                                   {},
	"POST /session":                                  {},
	"DELETE /session":                                {},
	"GET /healthz":                                   {},
	"GET /readyz":                                    {},
	"GET /ui":                                        {},
	"GET /apidocs":                                   {},
	"GET /spec.json":                                 {},
}

// needOf returns what the operation of a request requires.
func needOf(r *http.Request) need {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	route := mux.CurrentRoute(r)
	if route == nil {
		return need{scope: access.Admin}
	}
	template, err := route.GetPathTemplate()
	if err != nil {
		return need{scope: access.Admin}
	}
	if n, ok := needs[method+" "+strings.Replace(template, ":.+}", "}", 1)]; ok {
		return n
	}
	return need{scope: access.Admin}
}
