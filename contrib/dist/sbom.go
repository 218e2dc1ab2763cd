package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// writeSBOM lists, as CycloneDX JSON, the programs of r.Tree and the modules
// that the linker noted in each, Go's standard library among them.
func writeSBOM(r release) (string, error) {
	programs, err := filepath.Glob(filepath.Join(r.Tree, "bin/*"))
	if err != nil {
		return "", err
	}
	bom, err := bomOf(r, programs)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("shepherd-%s-linux-%s.cdx.json", strings.TrimPrefix(r.Version, "v"), r.Arch)
	return writeTo(filepath.Join(r.Out, name), func(f *os.File) error {
		return cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	})
}

func bomOf(r release, programs []string) (*cdx.BOM, error) {
	version := strings.TrimPrefix(r.Version, "v")
	product := cdx.Component{
		BOMRef: "shepherd", Type: cdx.ComponentTypeApplication, Name: "shepherd", Version: version,
		PackageURL: "pkg:golang/github.com/iterait/shepherd@" + version,
		Licenses:   &cdx.Licenses{{License: &cdx.License{ID: "MIT"}}},
	}
	modules := make(map[string]cdx.Component)
	parts := make(map[string][]string) // the parts of each program, by reference
	var components []cdx.Component
	for _, path := range programs {
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
			continue // a link to another program
		}
		built, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		program, err := programOf(path, version)
		if err != nil {
			return nil, err
		}
		components = append(components, program)
		parts[product.BOMRef] = append(parts[product.BOMRef], program.BOMRef)
		linked := append([]*debug.Module{{Path: "std", Version: strings.TrimPrefix(built.GoVersion, "go")}}, built.Deps...)
		for _, m := range linked {
			c := moduleOf(m)
			modules[c.BOMRef] = c
			parts[program.BOMRef] = append(parts[program.BOMRef], c.BOMRef)
		}
	}
	for _, ref := range sortedKeys(modules) {
		components = append(components, modules[ref])
		parts[ref] = nil
	}
	var dependencies []cdx.Dependency
	for _, ref := range sortedKeys(parts) {
		d := cdx.Dependency{Ref: ref}
		if on := parts[ref]; len(on) > 0 {
			d.Dependencies = &on
		}
		dependencies = append(dependencies, d)
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: r.Time.Format("2006-01-02T15:04:05Z"), Component: &product}
	bom.Components, bom.Dependencies = &components, &dependencies
	return bom, nil
}

func programOf(path, version string) (cdx.Component, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return cdx.Component{}, err
	}
	sum := sha256.Sum256(content)
	name := filepath.Base(path)
	return cdx.Component{
		BOMRef: "program:" + name, Type: cdx.ComponentTypeApplication, Name: name, Version: version,
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "MIT"}}},
	}, nil
}

func moduleOf(m *debug.Module) cdx.Component {
	if m.Replace != nil {
		m = m.Replace
	}
	purl := "pkg:golang/" + m.Path + "@" + m.Version
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
	if m.Sum != "" { // Go's own hash of the module's content
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: m.Sum}}
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
