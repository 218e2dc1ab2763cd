package build

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program returns the smallest valid ELF program, followed by a text that makes it unique.
func program(interpreter bool, content string) []byte {
	header := make([]byte, 64+56)
	copy(header, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(header[16:], 2)  // an executable
	le.PutUint16(header[18:], 62) // for amd64
	le.PutUint32(header[20:], 1)
	le.PutUint64(header[32:], 64) // offset of the program header
	le.PutUint16(header[52:], 64)
	le.PutUint16(header[54:], 56)
	le.PutUint16(header[56:], 1)
	le.PutUint32(header[64:], 1) // PT_LOAD
	if interpreter {
		le.PutUint32(header[64:], 3) // PT_INTERP
	}
	return append(header, content...)
}

// inputs writes the files of a runner and a model.
func inputs(t *testing.T, runner []byte, model map[string]string) Inputs {
	t.Helper()
	dir := t.TempDir()
	in := Inputs{Runner: filepath.Join(dir, "runner"), Model: filepath.Join(dir, "model"), Dir: filepath.Join(dir, "layers")}
	for _, d := range []string{in.Model, in.Dir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in.Runner, runner, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range model {
		if err := os.WriteFile(filepath.Join(in.Model, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// contents lists the entries of an image's layers.
func contents(t *testing.T, img v1.Image) [][]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		archive := tar.NewReader(r)
		for {
			h, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("%o %d:%d %s", h.Mode, h.Uid, h.Gid, h.Name))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		all = append(all, lines)
	}
	return all
}

func TestDigits(t *testing.T) {
	in := inputs(t, program(false, "digits"), map[string]string{"config.yaml": "weights: weights.bin\n", "weights.bin": "0123"})
	img, err := digits("amd64", in)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	want := [][]string{
		{"755 0:0 digits-runner", "1777 0:0 tmp/"},
		{"755 0:0 model/", "644 0:0 model/config.yaml", "644 0:0 model/weights.bin"},
	}
	if got := contents(t, img); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("the layers hold %q, expected %q", got, want)
	}
	// The same inputs must always give the same image: a change of this digest makes every
	// machine pull every image again.
	const golden = "sha256:15128ca4e95f15e75b02c901f8c70d1712a08946e3ff996141410a1f077eb2f8"
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if digest.String() != golden {
		manifest, _ := img.RawManifest()
		config, _ := img.RawConfigFile()
		t.Errorf("the image is %s, expected %s; it is\n%s\n%s", digest, golden, manifest, config)
	}
}

func TestRunnerThatCannotRun(t *testing.T) {
	for _, test := range []struct {
		runner []byte
		want   string
	}{
		{program(true, ""), "CGO_ENABLED=0"},
		{[]byte("#!/bin/sh"), "make build"},
		{nil, "make build"},
	} {
		in := inputs(t, test.runner, nil)
		_, digitsErr := Digits(in)
		_, tesseractErr := Tesseract(t.Context(), in, "")
		for _, err := range []error{digitsErr, tesseractErr} {
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), in.Runner) {
				t.Errorf("a runner %.10q: %v; expected %q", test.runner, err, test.want)
			}
		}
	}
}

// debian puts a program called mmdebstrap first into PATH, which writes an archive of these
// paths, prints a message and exits.
func debian(t *testing.T, exit int, paths ...string) {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, p := range paths {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: 0o644, Gid: 8}
		if strings.HasSuffix(p, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "archive"), archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >%[1]s/args\necho no such mirror >&2\ncat %[1]s/archive\nexit %[2]d\n", dir, exit)
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestTesseract(t *testing.T) {
	debian(t, 0, "./", "./dev/", "./dev/null", "./etc/", "./etc/apt/", "./etc/apt/x", "./etc/os-release", "./proc/",
		"./usr/", "./usr/bin/", "./usr/bin/tesseract", "./usr/share/doc/", "./usr/share/doc/libc6/", "./usr/share/doc/libc6/NEWS.gz",
		"./usr/share/doc/libc6/copyright", "./usr/share/man/", "./usr/share/man/x", "./usr/share/tesseract-ocr/5/tessdata/",
		"./usr/share/tesseract-ocr/5/tessdata/eng.traineddata", "./usr/share/tesseract-ocr/5/tessdata/osd.traineddata",
		"./usr/share/tesseract-ocr/5/tessdata/pdf.ttf", "./var/", "./var/cache/", "./var/mail/")
	in := inputs(t, program(false, ""), map[string]string{"config.yaml": "command: [tesseract]"})
	img, err := Tesseract(t.Context(), in, "http://mirror.example")
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{
			"755 0:8 etc/", "644 0:8 etc/os-release", "755 0:8 proc/", "755 0:8 usr/", "755 0:8 usr/bin/",
			"644 0:8 usr/bin/tesseract", "755 0:8 usr/share/doc/", "755 0:8 usr/share/doc/libc6/", "644 0:8 usr/share/doc/libc6/copyright",
			"755 0:8 usr/share/tesseract-ocr/5/tessdata/", "644 0:8 usr/share/tesseract-ocr/5/tessdata/pdf.ttf", "755 0:8 var/", "755 0:8 var/mail/",
		},
		{"755 0:0 usr/bin/shepherd-runner"},
		{"755 0:0 model/", "644 0:0 model/config.yaml", "644 0:8 usr/share/tesseract-ocr/5/tessdata/eng.traineddata"},
	}
	if got := contents(t, img); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("the layers hold\n%q\nexpected\n%q", got, want)
	}
	if left, _ := os.ReadDir(in.Dir); len(left) != 3 {
		t.Errorf("files of layers: %v, expected 3", left)
	}
}

// The message of mmdebstrap is in the error, and no layers are left.
func TestTesseractWithoutDebian(t *testing.T) {
	for _, test := range []struct {
		exit  int
		paths []string
		want  string
	}{
		{25, nil, "no such mirror"},
		{0, []string{"./b", "./a"}, "in order"},
		{0, []string{"./etc/.wh.x"}, "would remove a file"},
	} {
		debian(t, test.exit, test.paths...)
		in := inputs(t, program(false, ""), map[string]string{"config.yaml": ""})
		_, err := Tesseract(t.Context(), in, "")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v; expected %q", err, test.want)
		}
		if left, _ := os.ReadDir(in.Dir); len(left) != 0 {
			t.Errorf("files of layers left: %v", left)
		}
	}
}
