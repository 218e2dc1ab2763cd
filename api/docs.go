package api

import (
	_ "embed"
	"net/http"

	"github.com/iterait/shepherd/api/ui"
)

//go:embed spec.json
var contract []byte

// documents are the contract as two web pages, and as JSON for programs.
type documents struct{ swaggerUI, redoc, spec *ui.Asset }

func newDocuments() documents {
	return documents{swaggerUI: ui.SwaggerUI(), redoc: ui.ReDoc(), spec: ui.NewAsset("/spec.json", jsonType, contract)}
}

// GetUI answers GET /ui.
func (d documents) GetUI(w http.ResponseWriter, r *http.Request) { d.swaggerUI.ServeHTTP(w, r) }

// GetAPIDocs answers GET /apidocs.
func (d documents) GetAPIDocs(w http.ResponseWriter, r *http.Request) {
	d.redoc.ServeHTTP(w, r)
}

// GetSpec answers GET /spec.json.
func (d documents) GetSpec(w http.ResponseWriter, r *http.Request) { d.spec.ServeHTTP(w, r) }
