package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// writeTarball writes r.Tree as a tar file: sorted, owned by root, all with the same time.
func writeTarball(r release) (string, error) {
	name := fmt.Sprintf("shepherd-%s-linux-%s", strings.TrimPrefix(r.Version, "v"), r.Arch)
	return writeTo(filepath.Join(r.Out, name+".tar.gz"), func(f *os.File) error {
		packed, err := gzip.NewWriterLevel(f, gzip.BestCompression)
		if err != nil {
			return err
		}
		out := tar.NewWriter(packed)
		// WalkDir goes in lexical order.
		err = filepath.WalkDir(r.Tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return addTo(out, r, name, path, d)
		})
		return errors.Join(err, out.Close(), packed.Close())
	})
}

func addTo(out *tar.Writer, r release, name, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	below, err := filepath.Rel(r.Tree, path)
	if err != nil {
		return err
	}
	header.Name = filepath.ToSlash(filepath.Join(name, below))
	if d.IsDir() {
		header.Name += "/"
	}
	header.ModTime, header.AccessTime, header.ChangeTime, header.Format = r.Time, time.Time{}, time.Time{}, tar.FormatPAX
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "root", "root"
	if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, bufio.NewReader(f))
	return err
}

// writeSums writes SHA256SUMS of the files, as sha256sum -c reads it.
func writeSums(dir string, paths []string) error {
	sort.Strings(paths)
	var sums strings.Builder
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", h.Sum(nil), filepath.Base(path))
	}
	_, err := writeTo(filepath.Join(dir, "SHA256SUMS"), func(f *os.File) error {
		_, err := f.WriteString(sums.String())
		return err
	})
	return err
}
