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
func (s *server) GetUI(w http.ResponseWriter, r *http.Request) { s.documents.swaggerUI.ServeHTTP(w, r) }

// GetAPIDocs answers GET /apidocs.
func (s *server) GetAPIDocs(w http.ResponseWriter, r *http.Request) {
	s.documents.redoc.ServeHTTP(w, r)
}

// GetSpec answers GET /spec.json.
func (s *server) GetSpec(w http.ResponseWriter, r *http.Request) { s.documents.spec.ServeHTTP(w, r) }
