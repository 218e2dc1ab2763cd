// Package manual serves the documents in docs/ as web pages below /docs, with a search. The
// pages are rendered from the Markdown when the first of them is requested, and are not in
// the repository. docs/decisions/manual.md says why.
package manual

import (
	"embed"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/iterait/shepherd/api/ui"
	"github.com/iterait/shepherd/docs"
)

//go:generate go run -tags generate ../page/bundle

//go:embed assets layout.html
var files embed.FS

// policy lets a page use this server and nothing else, and run no script or style but
// its files.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// picturePolicy lets a drawing have its own styles, and nothing else.
const picturePolicy = "default-src 'none'; style-src 'unsafe-inline'"

// root is the address of the first page; all others are below it.
const root = "/docs"

// Assets are the manual's pages and what they load. They use the style of the page at
// `/`, too.
func Assets() []*ui.Asset {
	made := sync.OnceValue(func() *book { return bind(docs.Files()) })
	assets := []*ui.Asset{
		ui.NewText(root+"/app.js", "text/javascript; charset=utf-8", "", read(files, "assets/app.js")),
		ui.NewText(root+"/style.css", "text/css; charset=utf-8", "", read(files, "assets/style.css")),
		ui.NewMade(root+"/", "text/html; charset=utf-8", policy, func() []byte { return made().pages["README.md"] }),
		ui.NewMade(root+"/search.json", "application/json; charset=utf-8", "", func() []byte { return made().index }),
	}
	for _, name := range names(docs.Files()) {
		switch path.Ext(name) {
		case ".md":
			assets = append(assets, ui.NewMade(address(name), "text/html; charset=utf-8", policy, func() []byte { return made().pages[name] }))
		case ".png":
			assets = append(assets, ui.NewAsset(root+"/"+name, "image/png", read(docs.Files(), name)))
		case ".svg":
			assets = append(assets, ui.NewText(root+"/"+name, "image/svg+xml", picturePolicy, read(docs.Files(), name)))
		}
	}
	return assets
}

// address is where the page of a Markdown file is: `/docs/api` of api.md, and that of
// a README its directory's.
func address(name string) string {
	dir, base := path.Split(strings.TrimSuffix(name, ".md"))
	if base == "README" {
		return path.Join(root, dir)
	}
	return path.Join(root, dir, base)
}

// names are those of all files, in their order.
func names(of fs.FS) []string {
	var all []string
	err := fs.WalkDir(of, ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		panic(err) // of files that are part of the program
	}
	return all
}

func read(of fs.FS, name string) []byte {
	content, err := fs.ReadFile(of, name)
	if err != nil {
		panic(err) // of a file that is part of the program
	}
	return content
}
