package api

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/routers"
	"github.com/gorilla/mux"
)

func route(contract *openapi3.T, path, method string) *routers.Route {
	item := contract.Paths.Value(path)
	return &routers.Route{Spec: contract, Path: path, PathItem: item, Method: method, Operation: item.GetOperation(method)}
}

func TestContractIsValid(t *testing.T) {
	contract, err := loadContract()
	if err != nil {
		t.Fatal(err)
	}
	if err := contract.Validate(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestGeneratedFilesAreCurrent runs the generators again.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	dir := t.TempDir()
	config, err := os.ReadFile("oapi-codegen.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte("output: "), []byte("output: "+dir+"/"), 1)
	configFile := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"go", "tool", "oapi-codegen", "-config", configFile, "openapi.yaml"},
		{"go", "run", "./internal/specjson", "openapi.yaml", filepath.Join(dir, "spec.json")},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
		}
	}
	for _, name := range []string{"api.gen.go", "spec.json"} {
		fresh, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		committed, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(fresh, committed) {
			t.Errorf("%s is not what openapi.yaml says: run go generate ./api", name)
		}
	}
}

// TestEveryRouteIsInTheContract compares what is routed with what is promised.
func TestEveryRouteIsInTheContract(t *testing.T) {
	contract, err := loadContract()
	if err != nil {
		t.Fatal(err)
	}
	var promised, routed []string
	for path, item := range contract.Paths.Map() {
		for method := range item.Operations() {
			promised = append(promised, method+" "+path)
			if method == "GET" {
				promised = append(promised, "HEAD "+path)
			}
		}
	}
	gate := &gatekeeper{assets: make(map[string]bool)}
	h := newHandlers(Config{Service: newFake()}.withDefaults(), answers{}, gate)
	err = newRouter(h, gate, &startPage{}).Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := route.GetPathTemplate()
		if err != nil {
			return err
		}
		methods, err := route.GetMethods()
		if err != nil {
			return err
		}
		if strings.Contains(path, ":.+}") || strings.HasPrefix(path, "/ui/") || strings.HasPrefix(path, "/apidocs/") || strings.HasPrefix(path, "/page/") || strings.HasPrefix(path, "/docs") {
			return nil // nested names, which OpenAPI cannot say, the pages' scripts, and the manual
		}
		for _, method := range methods {
			routed = append(routed, method+" "+path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(promised)
	slices.Sort(routed)
	if !slices.Equal(promised, routed) {
		t.Errorf("promised %q\nrouted   %q", promised, routed)
	}
}
