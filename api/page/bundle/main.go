//go:build generate

// Command bundle makes one minified script of the page's modules. It is run by go generate
// in the page's directory, and is built for nothing else.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/evanw/esbuild/pkg/api"
)

func main() {
	if err := bundle("src", "assets/app.js", "bundle.sum"); err != nil {
		fmt.Fprintln(os.Stderr, "bundle:", err)
		os.Exit(1)
	}
}

// bundle writes the modules below src, from app.js on, as one script to out, and the
// digests of what it was made of and of what came out to sums.
func bundle(src, out, sums string) error {
	result := api.Build(api.BuildOptions{
		EntryPoints: []string{src + "/app.js"},
		Bundle:      true, Format: api.FormatESModule, Target: api.ES2022, Charset: api.CharsetUTF8, LegalComments: api.LegalCommentsNone,
		MinifyWhitespace: true, MinifyIdentifiers: true, MinifySyntax: true,
	})
	var errs []error
	for _, message := range append(result.Errors, result.Warnings...) {
		err := errors.New(message.Text)
		if at := message.Location; at != nil {
			err = fmt.Errorf("%s:%d: %w", at.File, at.Line, err)
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := os.WriteFile(out, result.OutputFiles[0].Contents, 0o644); err != nil {
		return err
	}
	var lines strings.Builder
	note := func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(content), filepath.ToSlash(name))
		return err
	}
	if err := errors.Join(filepath.WalkDir(src, note), filepath.WalkDir(out, note)); err != nil {
		return err
	}
	return os.WriteFile(sums, []byte(lines.String()), 0o644)
}
