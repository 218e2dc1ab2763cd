package api

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestTypeByName(t *testing.T) {
	for name, want := range map[string]string{
		"output": "application/octet-stream", "a.json": "application/json", "sub/a.TXT": "text/plain", "a.png": "image/png", "a.csv": "text/csv",
		"a.gz": "application/octet-stream", "a.tar.gz": "application/x-tar", "a.tgz": "application/x-tar", "a.json.gz": "application/json",
		"a.svgz": "image/svg+xml", ".json": "application/octet-stream", "..json": "application/octet-stream", "dir.json/x": "application/octet-stream",
		"a.": "application/octet-stream", "a.json.Z": "application/json", "a.json.GZ": "application/octet-stream", "": "application/octet-stream",
		"model.h5": "application/x-hdf5", "scan.webp": "image/webp",
	} {
		if got := typeByName(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

// TestTypesLikePython asks Python itself, for all that every Python agrees on.
func TestTypesLikePython(t *testing.T) {
	python := testenv.Python(t, "mimetypes", "python3")
	names := []string{
		"a", "a.", ".a", "..a.txt", "a.txt", "a.TXT", "A.Json", "a.csv", "a.png", "a.jpeg", "a.tar.gz", "a.tgz", "a.TGZ", "a.taz", "a.tar.bz2", "a.txz",
		"a.xml.xz", "a.json.gz", "a.json.Gz", "a.gz", ".gz", ".tgz", "a.gz.gz", "x.y/z", "x.txt/z", "x/.txt", "a.b.c.pdf", "a.zip", "a.mp4", "a.svg.gz", "a.svgz",
		"a.html", "a.wasm", "a.unknown", "a.txt.unknown", "ü.txt", "a b.txt",
	}
	question, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	const program = `import json, mimetypes, sys
known = mimetypes.MimeTypes(filenames=())
print(json.dumps([known.guess_type(name)[0] or "application/octet-stream" for name in json.loads(sys.argv[1])]))`
	out, err := exec.Command(python, "-c", program, string(question)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if got := typeByName(name); got != want[i] {
			t.Errorf("%q: %s, Python says %s", name, got, want[i])
		}
	}
}
