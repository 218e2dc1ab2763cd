// Package docs embeds the documents that the programs contain.
package docs

import (
	"embed"
	"io/fs"
)

//go:embed *.md decisions/*.md how-to/*.md pictures
var files embed.FS

// Files are the documents and their pictures, by the names that they have in this
// directory.
func Files() fs.FS { return files }

// Configuration is configuration.md, the reference of the configuration file.
func Configuration() string {
	text, err := files.ReadFile("configuration.md")
	if err != nil {
		panic(err) // of a file that is part of the program
	}
	return string(text)
}
