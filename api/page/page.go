// Package page holds the page at `/`: the flock, the queue and the jobs in a browser.
// It consists of ES modules in src, which use the API as any client does; `go generate`
// bundles them into one script, assets/app.js. Nothing is fetched from other sites.
// docs/decisions/page.md has the reasons.
package page

import (
	"embed"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/iterait/shepherd/api/ui"
)

//go:generate go run -tags generate ./bundle

//go:embed assets
var files embed.FS

// policy lets the page use this server and nothing else, and run no script or style but
// its own files. What jobs wrote is shown in frames and pictures, under the policy that
// it has of its own.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; frame-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// First is the Link header of the page for those who may read: the browser asks for how the
// flock is while it fetches the script that shows it.
const First = "</flock?follow=false>; rel=preload; as=fetch; crossorigin"

// types are the content types of the page's files.
var types = map[string]string{
	".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}

// Index is the page itself.
func Index() *ui.Asset {
	return ui.NewText("/", "text/html; charset=utf-8", policy, read("assets/index.html"))
}

// Policy is the Content-Security-Policy of the page that may send files to a storage as well,
// by its origin; empty for none.
func Policy(storage string) string {
	if storage == "" || strings.ContainsAny(storage, " ;,'\"") { // which no origin has
		return policy
	}
	return strings.Replace(policy, "connect-src 'self'", "connect-src 'self' "+storage, 1)
}

// Assets are what the page loads, below /page/.
func Assets() []*ui.Asset {
	var assets []*ui.Asset
	err := fs.WalkDir(files, "assets", func(name string, entry fs.DirEntry, err error) error {
		if contentType := types[path.Ext(name)]; err == nil && contentType != "" {
			assets = append(assets, ui.NewText("/page"+strings.TrimPrefix(name, "assets"), contentType, "", read(name)))
		}
		return err
	})
	if err != nil {
		panic(err) // of files that are part of the program
	}
	return assets
}

func read(name string) []byte {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // of a file that is part of the program
	}
	return content
}

// Wanted reports whether a request is that of a browser for the page. Clients that do
// not name HTML among what they accept are none.
func Wanted(r *http.Request) bool {
	if r.URL.Path != "/" || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for accepted := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		if kind, parameters, err := mime.ParseMediaType(accepted); err == nil && kind == "text/html" && parameters["q"] != "0" {
			return true
		}
	}
	return false
}
