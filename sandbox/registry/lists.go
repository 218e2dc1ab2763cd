package registry

import (
	"errors"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tags lists a repository's tags, sorted by name.
func (r *Registry) tags(w http.ResponseWriter, req *http.Request, name string) error {
	entries, err := os.ReadDir(r.path("repositories", filepath.FromSlash(name), "_tags"))
	if errors.Is(err, os.ErrNotExist) {
		return errNameUnknown.with("no repository %s with a tag", name)
	}
	if err != nil {
		return err
	}
	tags := make([]string, len(entries))
	for i, e := range entries {
		tags[i] = e.Name()
	}
	tags, err = page(w, req, tags)
	if err != nil {
		return err
	}
	return answerJSON(w, map[string]any{"name": name, "tags": tags})
}

// catalog lists the repositories, sorted by name.
func (r *Registry) catalog(w http.ResponseWriter, req *http.Request) error {
	root := r.path("repositories")
	names := []string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(entry.Name(), "_") {
			return err
		}
		if entry.Name() == "_manifests" {
			name, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			names = append(names, filepath.ToSlash(name))
		}
		return fs.SkipDir
	})
	if err != nil {
		return err
	}
	names, err = page(w, req, names)
	if err != nil {
		return err
	}
	return answerJSON(w, map[string]any{"repositories": names})
}

// page sorts a list and returns the page that the request's n and last select. It sets the
// Link header to the next page.
func page(w http.ResponseWriter, req *http.Request, all []string) ([]string, error) {
	q := req.URL.Query()
	n := math.MaxInt
	if q.Has("n") {
		var err error
		if n, err = strconv.Atoi(q.Get("n")); err != nil || n < 1 {
			return nil, errPage
		}
	}
	slices.Sort(all)
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	if len(all) <= n {
		return all, nil
	}
	next := url.URL{Path: req.URL.Path, RawQuery: url.Values{"n": {q.Get("n")}, "last": {all[n-1]}}.Encode()}
	w.Header().Set("Link", "<"+next.String()+`>; rel="next"`)
	return all[:n], nil
}
