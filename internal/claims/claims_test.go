package claims

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// TestEveryClaimIsTested compares the document with the tests.
func TestEveryClaimIsTested(t *testing.T) {
	text, err := os.ReadFile(root + "/docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	claimed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^- \*\*([A-Z]\d+)\.\*\* .*?\(([^()]*)\)$`).FindAllStringSubmatch(string(text), -1) {
		if claimed[m[1]] {
			t.Errorf("there are two claims %s", m[1])
		}
		claimed[m[1]] = true
	}
	if all := len(regexp.MustCompile(`(?m)^- \*\*[A-Z]\d+`).FindAll(text, -1)); all != len(claimed) || all < 20 {
		t.Errorf("%d claims were read, of %d", len(claimed), all)
	}
	held := map[string][]string{}
	for _, call := range holds(t) {
		for _, name := range call.names {
			held[name] = append(held[name], call.test)
		}
	}
	for name := range claimed {
		if len(held[name]) == 0 {
			t.Errorf("no test holds claim %s", name)
		}
	}
	for name, tests := range held {
		if !claimed[name] {
			t.Errorf("%v hold %s, which docs/security.md does not claim", tests, name)
		}
		// The document names exactly these tests.
		line := regexp.MustCompile(`(?m)^- \*\*` + name + `\.\*\* .*$`).FindString(string(text))
		for _, test := range tests {
			if !strings.Contains(line, "`"+test+"`") {
				t.Errorf("claim %s does not name %s", name, test)
			}
		}
		if named := strings.Count(line[strings.LastIndexByte(line, '(')+1:], "`") / 2; named != len(tests) {
			t.Errorf("claim %s names %d tests; it is held by %v", name, named, tests)
		}
	}
}

// hold is a call of Hold.
type hold struct {
	test  string // PACKAGE.TestName
	names []string
}

// holds finds all calls. Each must be in a test function.
func holds(t *testing.T) (found []hold) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && path != root || entry.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(source), "claims.Hold(") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, source, 0)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if s, ok := call.Fun.(*ast.SelectorExpr); !ok || s.Sel.Name != "Hold" || !isIdent(s.X, "claims") {
					return true
				}
				if !strings.HasPrefix(f.Name.Name, "Test") {
					t.Errorf("%s: %s is no test", path, f.Name.Name)
				}
				h := hold{test: rel + "." + f.Name.Name}
				for _, arg := range call.Args[1:] {
					literal, ok := arg.(*ast.BasicLit)
					if !ok {
						t.Errorf("%s: %s names a claim by something else than a literal", path, f.Name.Name)
						continue
					}
					name, err := strconv.Unquote(literal.Value)
					if err != nil {
						t.Error(err)
					}
					h.names = append(h.names, name)
				}
				found = append(found, h)
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func isIdent(e ast.Expr, name string) bool {
	i, ok := e.(*ast.Ident)
	return ok && i.Name == name
}
