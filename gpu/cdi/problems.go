package cdi

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/goccy/go-yaml"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"
)

// problem says why a spec, or some of its devices, cannot be used, and what to do about
// it. The kind is empty if it cannot be read from the file.
type problem struct{ kind, text string }

type problems []problem

// about returns the problems that may be why a kind's devices are missing.
func (p problems) about(kind string) problems {
	return slices.DeleteFunc(slices.Clone(p), func(x problem) bool { return x.kind != "" && x.kind != kind })
}

func (p problems) String() string {
	texts := make([]string, len(p))
	for i, x := range p {
		texts[i] = x.text
	}
	return strings.Join(texts, "; ")
}

// err returns the problems about a kind, or all if it is empty, as an error.
func (p problems) err(kind string) error {
	if kind != "" {
		p = p.about(kind)
	}
	if len(p) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", p, errdefs.ErrFailedPrecondition)
}

// read reads directories of specs, and returns the problems of those that cannot be used.
// It does not use the library's default cache, which watches the directories forever.
func read(dirs ...string) (*cdi.Cache, problems) {
	cache, empty := Load(dirs...)
	found := conflicts(cache)
	for _, path := range empty {
		found = append(found, problem{"", path + " is not valid (an entry of a list in it is empty), and no CDI spec counts beside it; correct it, or remove it"})
	}
	all := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(all)) {
		loaded := false
		for _, vendor := range cache.ListVendors() {
			loaded = loaded || slices.ContainsFunc(cache.GetVendorSpecs(vendor), func(s *cdi.Spec) bool { return s.GetPath() == path })
		}
		if !loaded { // otherwise it has a conflict, which conflicts has found
			found = append(found, explain(path, errors.Join(all[path]...)))
		}
	}
	return cache, found
}

// Load has the library read directories of specs. The library panics at some files, such
// as one with an empty entry in a list; then Load returns these files and an empty cache.
func Load(dirs ...string) (cache *cdi.Cache, empty []string) {
	if !panics(func() {
		cache, _ = cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false)) // the error is always nil
	}) {
		return cache, nil
	}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir) // the library could not read it either
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if slices.Contains([]string{".json", ".yaml"}, filepath.Ext(path)) && panics(func() { _, _ = cdi.ReadSpec(path, 0) }) {
				empty = append(empty, path)
			}
		}
	}
	cache, _ = cdi.NewCache(cdi.WithSpecDirs(), cdi.WithAutoRefresh(false))
	return cache, empty
}

func panics(do func()) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	do()
	return false
}

// conflicts finds devices that two specs of one directory define; the library drops both
// definitions.
func conflicts(cache *cdi.Cache) problems {
	type key struct {
		priority int // of the directory
		device   string
	}
	type pair struct{ kind, first, second string }
	defined := make(map[key]string)
	shared := make(map[pair][]string)
	for _, vendor := range cache.ListVendors() {
		specs := slices.SortedFunc(slices.Values(cache.GetVendorSpecs(vendor)), func(a, b *cdi.Spec) int { return cmp.Compare(a.GetPath(), b.GetPath()) })
		for _, s := range specs {
			for _, d := range s.Devices {
				p := key{s.GetPriority(), s.Kind + "=" + d.Name}
				if first, ok := defined[p]; ok && first != s.GetPath() {
					k := pair{s.Kind, first, s.GetPath()}
					shared[k] = append(shared[k], p.device)
					continue
				}
				defined[p] = s.GetPath()
			}
		}
	}
	var found problems
	for _, k := range slices.SortedFunc(maps.Keys(shared), func(a, b pair) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.second, b.second)) }) {
		found = append(found, problem{k.kind, fmt.Sprintf("%s and %s both define %s, so neither counts; remove one of the files, or the devices from one of them",
			k.first, k.second, strings.Join(shared[k], ", "))})
	}
	return found
}

// explain returns the problem of a file that the library rejected.
func explain(path string, refused error) problem {
	text, err := os.ReadFile(path)
	if err != nil {
		return problem{"", fmt.Sprintf("%s cannot be read (%v); make it readable, or remove it", path, err)}
	}
	var head struct {
		Version string `yaml:"cdiVersion"`
		Kind    string `yaml:"kind"`
	}
	if err := yaml.Unmarshal(text, &head); err != nil {
		return problem{kindOf(text), fmt.Sprintf("%s has a syntax error (%s); correct it, generate it again (nvidia-ctk cdi generate --output=%s), or remove it", path, oneLine(err), path)}
	}
	if newer(head.Version, specs.CurrentVersion) {
		return problem{head.Kind, fmt.Sprintf("%s has cdiVersion %s, and the newest that is understood is %s; update shepherd, or generate the file with an older toolkit", path, printable(head.Version), specs.CurrentVersion)}
	}
	return problem{head.Kind, fmt.Sprintf("%s is not valid (%s); correct it, or remove it", path, printable(strings.ReplaceAll(refused.Error(), "\n", "; ")))}
}

// kindOf searches the kind in a file that cannot be parsed; "" if there is none.
func kindOf(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if kind, ok := strings.CutPrefix(line, "kind:"); ok {
			kind = strings.Trim(strings.TrimSpace(kind), `"'`)
			if strings.Count(kind, "/") == 1 && !strings.ContainsAny(kind, " [{") {
				return kind
			}
		}
	}
	return ""
}

// oneLine formats a YAML error with its position but without the excerpt of the file.
func oneLine(err error) string {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return printable(first)
	}
	at := e.GetToken().Position
	return fmt.Sprintf("line %d, column %d: %s", at.Line, at.Column, printable(e.GetMessage()))
}

// printable replaces the control characters of a text that may quote the file.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// newer reports whether version a is newer than b, both X.Y.Z; false if one is not a
// version.
func newer(a, b string) bool {
	as, bs := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(b, ".")
	if len(as) != len(bs) {
		return false
	}
	for i := range bs {
		x, err1 := strconv.Atoi(as[i])
		y, err2 := strconv.Atoi(bs[i])
		if err1 != nil || err2 != nil || x < y {
			return false
		}
		if x > y {
			return true
		}
	}
	return false
}
