package manual

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/api/internal/bundletest"
	"github.com/iterait/shepherd/docs"
)

// TestNoLinkIsBroken: every link between documents, and to headings of them, leads
// somewhere, and every document is in the table of contents.
func TestNoLinkIsBroken(t *testing.T) {
	for _, broken := range bind(docs.Files()).broken {
		t.Error(broken)
	}
}

// TestLinksOfTheRepository: so do links from and to files outside docs.
func TestLinksOfTheRepository(t *testing.T) {
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", ":!*/testdata/*")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 20 {
		t.Fatalf("only %d files were found", len(files))
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	code := regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	manual := bind(docs.Files())
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(code.ReplaceAll(text, nil)), -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, ":") || to == "" {
				continue
			}
			target := path.Join(path.Dir(file), to)
			if _, err := os.Stat(filepath.Join("../..", target)); err != nil {
				t.Errorf("%s: %s: there is no such file", file, m[1])
			}
			name, ours := strings.CutPrefix(target, "docs/")
			if page := manual.pages[name]; ours && anchor != "" && !strings.Contains(string(page), ` id="`+anchor+`"`) {
				t.Errorf("%s: %s: there is no such heading", file, m[1])
			}
		}
	}
}

// TestBroken: what is wrong is found.
func TestBroken(t *testing.T) {
	docs := os.DirFS("testdata")
	got := strings.Join(bind(docs).broken, "\n")
	want := "unlisted.md: README.md does not list it\n" +
		"page.md: page.md#none: there is no such heading\n" +
		"page.md: none.md: there is no such file\n" +
		"page.md: none.png: there is no such file"
	if got != want {
		t.Errorf("it found\n%s\nnot\n%s", got, want)
	}
}

// TestPage looks at what becomes of Markdown.
func TestPage(t *testing.T) {
	page := string(bind(os.DirFS("testdata")).pages["page.md"])
	for _, want := range []string{
		"<title>A page · shepherd</title>",
		`<h2 id="a-key_name-of-it">A <code>key_name</code>, of it</h2>`,
		`<h2 id="a-key_name-of-it-1">`,
		`<a href="/docs/page#a-key_name-of-it">`,
		`<a href="/docs">`,
		`<a href="https://github.com/iterait/shepherd/blob/main/api/openapi.yaml">`,
		`<a href="https://example.com/x.md">`,
		`<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>`,
		`<th align="right">`,
		`<pre tabindex="0"><code class="language-sh">echo &lt;b&gt;`,
		`<a href="/docs/page" aria-current="page">A page</a>`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("there is no %s in\n%s", want, page)
		}
	}
	if strings.Contains(page, "<script>") || strings.Contains(page, "onerror") || strings.Contains(page, "style=") {
		t.Errorf("HTML of the source is in\n%s", page)
	}
}

// TestServed asks for every page as a browser does.
func TestServed(t *testing.T) {
	inline := regexp.MustCompile(`<script>|<style|\son\w+="|style="`)
	local := regexp.MustCompile(`(?:href|src)="(/[^"#]*)`)
	served := make(map[string]bool)
	pages := make(map[string]string)
	for _, asset := range Assets() {
		w := httptest.NewRecorder()
		asset.ServeHTTP(w, httptest.NewRequest("GET", asset.Path, nil))
		if w.Code != 200 || w.Body.Len() == 0 {
			t.Errorf("%s: %d with %d bytes", asset.Path, w.Code, w.Body.Len())
		}
		served[asset.Path] = true
		if strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			pages[asset.Path] = w.Body.String()
			if csp := w.Header().Get("Content-Security-Policy"); csp != policy || strings.Contains(csp, "unsafe") {
				t.Errorf("%s: the policy is %q", asset.Path, csp)
			}
		}
	}
	if len(pages) < 30 || pages["/docs"] == "" || pages["/docs/"] != pages["/docs"] || pages["/docs/decisions"] == "" || pages["/docs/how-to/submit-files"] == "" {
		t.Errorf("%d pages are served", len(pages))
	}
	elsewhere := map[string]bool{"/": true, "/page/style.css": true, "/page/icon.svg": true}
	for address, page := range pages {
		if found := inline.FindString(page); found != "" {
			t.Errorf("%s has %q, which the policy refuses", address, found)
		}
		for _, m := range local.FindAllStringSubmatch(page, -1) {
			if !served[m[1]] && !elsewhere[m[1]] {
				t.Errorf("%s needs %s, which is not served", address, m[1])
			}
		}
	}
}

// TestIndex: the search knows every heading, and nothing of markup.
func TestIndex(t *testing.T) {
	var index []section
	if err := json.Unmarshal(bind(docs.Files()).index, &index); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, s := range index {
		if s.Title == "" || seen[s.Address] {
			t.Errorf("%+v has no title, or is there twice", s)
		}
		seen[s.Address] = true
	}
	for address, title := range map[string]string{"/docs/configuration#api": "api", "/docs/tutorial": "Tutorial", "/docs/command-line#exit-codes": "Exit codes"} {
		found := false
		for _, s := range index {
			found = found || s.Address == address && s.Title == title && s.Text != "" && !strings.Contains(s.Text, "](")
		}
		if !found {
			t.Errorf("%s is not found", address)
		}
	}
}

// TestBundle: the script is made of its source, and the library is the one that update.sh
// names.
func TestBundle(t *testing.T) {
	bundletest.Current(t, "api/manual")
	bundletest.Unchanged(t, "src/lib/minisearch.js")
}

// TestMessages: each message that troubleshooting.md tells of is one of the programs.
func TestMessages(t *testing.T) {
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go", ":!*_test.go")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for file := range strings.FieldsSeq(string(out)) {
		text, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	for line := range strings.Lines(string(text)) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		ticks := len(cell) - len(strings.TrimLeft(cell, "`"))
		if !strings.HasPrefix(line, "| `") || ticks == 0 {
			continue
		}
		messages++
		for part := range strings.SplitSeq(strings.Trim(strings.TrimSpace(cell[ticks:len(cell)-ticks]), " "), "…") {
			if part = strings.TrimSpace(part); len(part) > 2 && !strings.Contains(source.String(), part) {
				t.Errorf("no program says %q (of %s)", part, cell)
			}
		}
	}
	if messages < 30 {
		t.Errorf("only %d messages were found", messages)
	}
}
