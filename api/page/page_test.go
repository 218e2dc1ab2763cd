package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

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

// TestFirstView bounds what a browser fetches before it shows the flock: the page
// itself, its style and what its first modules import.
func TestFirstView(t *testing.T) {
	first := map[string]bool{"assets/index.html": true, "assets/style.css": true, "assets/icon.svg": true}
	imports := regexp.MustCompile(`(?m)^(?:import|export) .*from "\./([^"]+)"`)
	var follow func(string)
	follow = func(name string) {
		if first[name] {
			return
		}
		first[name] = true
		for _, m := range imports.FindAllStringSubmatch(string(read(name)), -1) {
			follow("assets/" + m[1])
		}
	}
	follow("assets/app.js")
	size := 0
	for name := range first {
		var packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(read(name)); err != nil {
			t.Fatal(err)
		}
		w.Close()
		size += packed.Len()
	}
	t.Logf("%d files, %d bytes compressed", len(first), size)
	if size > 40_000 || len(first) < 8 {
		t.Errorf("the first view takes %d bytes in %d files", size, len(first))
	}
}

// TestNothingInline: the policy allows no inline script or style, and the page needs none,
// and nothing from elsewhere. No module makes HTML of a text.
func TestNothingInline(t *testing.T) {
	claims.Hold(t, "B6")
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") || !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") {
		t.Errorf("the policy is %s", policy)
	}
	forbidden := regexp.MustCompile(`<script>|<style|\son\w+="|style="|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|dangerously|https?://`)
	err := fs.WalkDir(files, "assets", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || name == "assets/lib/preact.js" {
			return err
		}
		text := strings.ReplaceAll(string(read(name)), "http://www.w3.org/2000/svg", "")
		if found := forbidden.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLibraryIsUnchanged compares the library with the digest in update.sh.
func TestLibraryIsUnchanged(t *testing.T) {
	script, err := os.ReadFile("update.sh")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(read("assets/lib/preact.js"))
	if !bytes.Contains(script, []byte("digest="+hex.EncodeToString(sum[:])+"\n")) {
		t.Errorf("preact.js has the SHA-256 %x, which update.sh does not name", sum)
	}
}
