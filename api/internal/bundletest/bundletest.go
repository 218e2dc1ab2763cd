// Package bundletest checks the scripts that api/page/bundle has made, and the libraries in
// them. The bundler itself is not run: building it takes longer than all tests of the
// packages that have such scripts.
package bundletest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Current fails the test where the script of the package, in whose directory the test
// runs, is not what go generate made of the modules as they are.
func Current(t testing.TB, pkg string) {
	t.Helper()
	var sums strings.Builder
	note := func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
		return err
	}
	if err := errors.Join(filepath.WalkDir("src", note), filepath.WalkDir("assets/app.js", note)); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile("bundle.sum")
	if err != nil {
		t.Fatal(err)
	}
	if sums.String() != string(made) {
		t.Errorf("assets/app.js is not made of what is in src: run go generate ./%s; the digests are\n%s", pkg, sums.String())
	}
}

// Unchanged fails the test where update.sh does not name the digest of a library.
func Unchanged(t testing.TB, library string) {
	t.Helper()
	script, err := os.ReadFile("update.sh")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(library)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	if !bytes.Contains(script, []byte("digest="+hex.EncodeToString(sum[:])+"\n")) {
		t.Errorf("%s has the SHA-256 %x, which update.sh does not name", library, sum)
	}
}
