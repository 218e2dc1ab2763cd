package page

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/api/internal/bundletest"
	"github.com/iterait/shepherd/internal/claims"
)

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		method, path, accept string
		want                 bool
	}{
		{"GET", "/", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true},
		{"HEAD", "/", "text/html", true},
		{"GET", "/?x=1", "TEXT/HTML; charset=utf-8", true},
		{"GET", "/", "", false},
		{"GET", "/", "*/*", false},
		{"GET", "/", "application/json", false},
		{"GET", "/", "text/html;q=0, */*", false},
		{"POST", "/", "text/html", false},
		{"GET", "/jobs", "text/html", false},
		{"GET", "//", "text/html", false},
	} {
		r := httptest.NewRequest(c.method, "http://localhost"+c.path, nil)
		if c.accept != "" {
			r.Header.Set("Accept", c.accept)
		}
		if got := Wanted(r); got != c.want {
			t.Errorf("%s %s, Accept: %s: %t", c.method, c.path, c.accept, got)
		}
	}
}

// TestFirstView bounds what a browser fetches before it shows the flock: the page itself
// names one script and one style, and these name nothing.
func TestFirstView(t *testing.T) {
	page := string(read("assets/index.html"))
	if n := strings.Count(page, "<script"); n != 1 || strings.Count(page, `rel="stylesheet"`) != 1 || strings.Contains(string(read("assets/style.css")), "url(") {
		t.Errorf("the page has %d scripts, or more styles than one: each is a round trip more", n)
	}
	size := 0
	for _, name := range []string{"index.html", "style.css", "app.js", "icon.svg"} {
		var packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(read("assets/" + name)); err != nil {
			t.Fatal(err)
		}
		w.Close()
		t.Logf("%s: %d bytes compressed", name, packed.Len())
		size += packed.Len()
	}
	if size > 40_000 {
		t.Errorf("the first view takes %d bytes", size)
	}
}

// TestBundle: the script is made of its source, and the library is the one that update.sh
// names.
func TestBundle(t *testing.T) {
	bundletest.Current(t, "api/page")
	bundletest.Unchanged(t, "src/lib/preact.js")
}

// TestNothingInline: the policy allows no inline script or style, and the page needs none,
// and nothing from elsewhere. No module makes HTML of a text.
func TestNothingInline(t *testing.T) {
	claims.Hold(t, "B6")
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") || !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") {
		t.Errorf("the policy is %s", policy)
	}
	forbidden := regexp.MustCompile(`<script>|<style|\son\w+="|style="|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|dangerously|https?://`)
	look := func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || name == "src/lib/preact.js" || name == "assets/app.js" {
			return err
		}
		content, err := os.ReadFile(name)
		text := strings.ReplaceAll(string(content), "http://www.w3.org/2000/svg", "")
		if found := forbidden.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
		return err
	}
	if err := errors.Join(fs.WalkDir(os.DirFS("."), "assets", look), fs.WalkDir(os.DirFS("."), "src", look)); err != nil {
		t.Fatal(err)
	}
}

// TestWordsAreInOneFile: what the page says is in words.js alone, so that another language
// is another file like it.
func TestWordsAreInOneFile(t *testing.T) {
	said := regexp.MustCompile(`[^=]>[A-Za-z][A-Za-z ,.;:'…-]{2,}<|(?:aria-label|title|placeholder|label|confirm)="[A-Za-z]`)
	files, err := filepath.Glob("src/*.js")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(content), "<span>shepherd</span>", "") // its name
		if found := said.FindString(text); found != "" && name != "src/words.js" {
			t.Errorf("%s says %q", name, found)
		}
	}
	if words, err := os.ReadFile("src/words.js"); err != nil || !strings.Contains(string(words), "Submit a job") {
		t.Errorf("words.js does not say what the page does: %v", err)
	}
}
