package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

// describeTagged matches the output of git describe with a tag: the tag, the commits since, and
// whether the tree had changes.
var describeTagged = regexp.MustCompile(`^v?(\d[0-9A-Za-z.]*)(?:-([0-9A-Za-z.]+?))??(?:-(\d+)-g([0-9a-f]+))?(-dirty)?$`)

// debianVersion converts the output of git describe to a version that Debian can order:
// 1.2.0 for the tag v1.2.0, 1.2.0~rc1 for v1.2.0-rc1, 1.2.0+5.gabc1234 for the
// fifth commit after it, and the commit's time where there is no tag.
func debianVersion(described string, at time.Time) string {
	m := describeTagged.FindStringSubmatch(described)
	// A lone abbreviated commit may look like a version; tags have a dot in them.
	if m == nil || !strings.Contains(m[1], ".") {
		commit, dirty := strings.CutSuffix(described, "-dirty")
		v := "0~" + at.UTC().Format("20060102150405")
		if legal := regexp.MustCompile(`[^0-9A-Za-z]+`).ReplaceAllString(commit, ""); legal != "" {
			v += ".g" + legal
		}
		if dirty {
			v += "+dirty"
		}
		return v
	}
	v := m[1]
	if m[2] != "" {
		v += "~" + strings.ReplaceAll(m[2], "-", ".")
	}
	if m[3] != "" {
		v += "+" + m[3] + ".g" + m[4]
	}
	if m[5] != "" {
		v += "+dirty"
	}
	return v
}

// writeDeb packages r.Root, after adding the parts of a Debian package: compressed manual pages,
// changelog and copyright.
func writeDeb(r release) (string, error) {
	version := debianVersion(r.Version, r.Time)
	if err := debianize(r, version); err != nil {
		return "", err
	}
	variables := map[string]string{"VERSION": version, "ARCH": r.Arch, "MAINTAINER": r.Maintainer, "ROOT": r.Root}
	config, err := nfpm.ParseFileWithEnvMapping("contrib/deb/nfpm.yaml", func(name string) string { return variables[name] })
	if err != nil {
		return "", fmt.Errorf("contrib/deb/nfpm.yaml: %w", err)
	}
	info, err := config.Get("deb")
	if err != nil {
		return "", err
	}
	info.MTime = r.Time
	if r.Compression != "" {
		info.Deb.Compression = r.Compression
	}
	libraries, err := dependencies(r.Root)
	if err != nil {
		return "", err
	}
	info.Depends = append(info.Depends, libraries...)
	nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return "", err
	}
	// The packaged files were built just now.
	for _, c := range info.Contents {
		if c.FileInfo != nil {
			c.FileInfo.MTime = r.Time
		}
	}
	path := filepath.Join(r.Out, deb.Default.ConventionalFileName(info))
	return writeTo(path, func(f *os.File) error { return deb.Default.Package(info, f) })
}

// dependencies are the packages of the libraries that programs need. Only glibc
// is known, and only shepherd-gpu, where it was built, needs it.
func dependencies(root string) ([]string, error) {
	var newest [2]int
	needed := false
	err := filepath.WalkDir(filepath.Join(root, "usr"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		program, err := elf.Open(path)
		if err != nil {
			return nil // it is no program
		}
		defer program.Close()
		libraries, err := program.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, library := range libraries {
			if !slices.Contains([]string{"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-aarch64.so.1"}, library) {
				return fmt.Errorf("%s needs %s, and no package is known to bring it", path, library)
			}
			needed = true
		}
		symbols, err := program.ImportedSymbols()
		if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, symbol := range symbols {
			var version [2]int
			if _, err := fmt.Sscanf(symbol.Version, "GLIBC_%d.%d", &version[0], &version[1]); err == nil && slices.Compare(version[:], newest[:]) > 0 {
				newest = version
			}
		}
		return nil
	})
	if err != nil || !needed {
		return nil, err
	}
	return []string{fmt.Sprintf("libc6 (>= %d.%d)", newest[0], newest[1])}, nil
}

func debianize(r release, version string) error {
	doc := filepath.Join(r.Root, "usr/share/doc/shepherd")
	changelog := fmt.Sprintf("shepherd (%s) unstable; urgency=medium\n\n  * What has changed is in /usr/share/doc/shepherd/CHANGELOG.md.\n\n -- %s  %s\n",
		version, r.Maintainer, r.Time.Format(time.RFC1123Z))
	if err := os.WriteFile(filepath.Join(doc, "changelog"), []byte(changelog), 0o644); err != nil {
		return err
	}
	for from, to := range map[string]string{
		"contrib/deb/copyright":         filepath.Join(doc, "copyright"),
		"contrib/deb/lintian-overrides": filepath.Join(r.Root, "usr/share/lintian/overrides/shepherd"),
	} {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(doc, "LICENSE")); err != nil { // copyright has it
		return err
	}
	pages, err := filepath.Glob(filepath.Join(r.Root, "usr/share/man/man*/*.[0-9]"))
	if err != nil {
		return err
	}
	for _, path := range append(pages, filepath.Join(doc, "changelog"), filepath.Join(doc, "third-party-licences")) {
		if err := compress(path); err != nil {
			return fmt.Errorf("compress %s: %w", path, err)
		}
	}
	return nil
}

// compress replaces a file by its gzip without a time, and a link by one to the compressed
// file.
func compress(path string) error {
	if target, err := os.Readlink(path); err == nil {
		if err := os.Symlink(target+".gz", path+".gz"); err != nil {
			return err
		}
		return os.Remove(path)
	}
	plain, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(plain); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(path+".gz", packed.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Remove(path)
}
