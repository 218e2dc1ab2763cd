package storagetest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

const secret = "what only the daemon may read"

func (s *suite) testHostile(t *testing.T) {
	t.Run("ListedName", func(t *testing.T) {
		for _, name := range []string{
			"inputs/../x", "inputs//x", "inputs/a/../../x", "inputs/a/../../../../../../tmp/x", "inputs/./x", "inputs/..", "inputs/.",
			"inputs//", "inputs//etc/passwd", "inputs/a\x00b", "inputs/a/", "../x", "outputs/x", "inputs/a\xff", "inputs/good/below", "inputs/" + strings.Repeat("x", 300),
		} {
			t.Run(fmt.Sprintf("%.40q", name), func(t *testing.T) { s.stageListed(t, name) })
		}
	})

	t.Run("StageOverOthers", s.testStageOver)
	t.Run("Links", s.testLinks)
	t.Run("LeftOut", s.testLeftOut)
	t.Run("ManyLeftOut", s.testManyLeftOut)
	t.Run("LinksMultiply", s.testLinksMultiply)
	t.Run("BadOutputs", s.testBadOutputs)
	t.Run("SwappedOutputs", s.testSwapped)
	t.Run("Changing", s.testChanging)
}

// testStageOver stages over what a runner put in the place of inputs, and of
// what Stage keeps beside them.
func (s *suite) testStageOver(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, dir, outside string){
		"FileLink":   func(t *testing.T, dir, outside string) { noError(t, os.Symlink(outside+"/keep", dir+"/inputs/input")) },
		"FolderLink": func(t *testing.T, dir, outside string) { noError(t, os.Symlink(outside, dir+"/inputs/sub")) },
		"HardLink":   func(t *testing.T, dir, outside string) { noError(t, os.Link(outside+"/keep", dir+"/inputs/input")) },
		"Pipe":       func(t *testing.T, dir, _ string) { noError(t, syscall.Mkfifo(dir+"/inputs/input", 0o644)) },
		"Socket":     func(t *testing.T, dir, _ string) { listen(t, dir+"/inputs", "input") },
		"Device":     func(t *testing.T, dir, _ string) { device(t, dir+"/inputs/input") },
		"Folder":     func(t *testing.T, dir, _ string) { noError(t, os.MkdirAll(dir+"/inputs/input/x", 0o755)) },
		"File":       func(t *testing.T, dir, _ string) { write(t, dir, map[string]string{"inputs/sub": "in the way"}) },
		"StrangeLinks": func(t *testing.T, dir, outside string) {
			noError(t, os.Symlink(outside, dir+"/inputs/strange"))
			noError(t, os.Symlink(outside+"/none", dir+"/inputs/dead"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inputs := map[string]string{input: "payload", "inputs/sub/file": "more"}
			id := s.fresh(t, inputs)
			parent := t.TempDir() // one file system, for hard links
			dir, outside := filepath.Join(parent, "job"), filepath.Join(parent, "outside")
			write(t, outside, map[string]string{"keep": "this"})
			noError(t, os.MkdirAll(filepath.Join(dir, "inputs"), 0o755))
			plant(t, dir, outside)
			s.stage(t, id, dir, inputs)
			sameFiles(t, "outside", onDisk(t, outside), map[string]string{"keep": "this"})
		})
	}

	if !s.served() { // nothing cuts a Stage short
		return
	}
	// The runner takes the names under which files are fetched, which it can work
	// out: they are those of an earlier Stage that was cut short.
	for name, plant := range map[string]func(t *testing.T, outside, part string){
		"PartHardLink": func(t *testing.T, outside, part string) { noError(t, os.Link(outside+"/keep", part)) },
		"PartLink":     func(t *testing.T, outside, part string) { noError(t, os.Symlink(outside+"/keep", part)) },
		"PartPipe":     func(t *testing.T, _, part string) { noError(t, syscall.Mkfifo(part, 0o644)) },
		"PartFolder":   func(t *testing.T, _, part string) { noError(t, os.MkdirAll(part+"/x", 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			id := s.fresh(t, map[string]string{input: noise(1 << 20)})
			parent := t.TempDir()
			dir, outside := filepath.Join(parent, "job"), filepath.Join(parent, "outside")
			write(t, outside, map[string]string{"keep": "this"})
			noError(t, os.Mkdir(dir, 0o755))
			for _, part := range s.cutShort(t, id, dir) {
				noError(t, os.RemoveAll(filepath.Join(dir, part)))
				plant(t, outside, filepath.Join(dir, part))
			}
			s.stage(t, id, dir, map[string]string{input: noise(1 << 20)})
			sameFiles(t, "outside", onDisk(t, outside), map[string]string{"keep": "this"})
		})
	}
}

// cutShort runs a Stage that ends in the middle and answers the files that it
// left beside inputs/ and outputs/; an implementation may leave none.
func (s *suite) cutShort(t *testing.T, id job.ID, dir string) []string {
	t.Helper()
	u, err := url.Parse(s.URL)
	noError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }, // signed as it came
		ErrorLog: log.New(io.Discard, "", 0),
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var files atomic.Int32
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.ContentLength <= 1000 {
			return nil
		}
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(r.Body, 1000), r.Body}
		if files.Add(1) > 1 { // a first part is here, and it is tried again
			cancel()
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer server.Close()
	_, _ = s.Open(t, server.URL, s.AccessKey, s.SecretKey).Stage(ctx, id, openRoot(t, dir), storage.Options{})
	entries, err := os.ReadDir(dir)
	noError(t, err)
	var parts []string
	for _, entry := range entries {
		if entry.Name() != job.InputDir && entry.Name() != job.OutputDir {
			parts = append(parts, entry.Name())
		}
	}
	return parts
}

// testLinks collects links that stay within outputs/.
func (s *suite) testLinks(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	dir := t.TempDir()
	outputs := map[string]string{"outputs/best": "result", "outputs/runs/1/log": "one", "outputs/runs/2/log": "two", "outputs/runs/2/deep/er": "deep"}
	write(t, dir, outputs)
	for name, target := range map[string]string{
		"file": "best", "chain": "file", "runs/latest": "2", "runs/log": "latest/log", "runs/1/up": "../../best", "round": "runs/../runs/./1//log",
		"runs/2/sibling": "../1", "x/y/z": "../../runs/2/deep",
	} {
		path := filepath.Join(dir, "outputs", name)
		noError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		noError(t, os.Symlink(target, path))
	}
	want := merge(outputs, map[string]string{
		"outputs/file": "result", "outputs/chain": "result", "outputs/round": "one", "outputs/runs/log": "two", "outputs/runs/1/up": "result", "outputs/x/y/z/er": "deep",
		"outputs/runs/latest/log": "two", "outputs/runs/latest/deep/er": "deep",
		"outputs/runs/2/sibling/log": "one", "outputs/runs/2/sibling/up": "result",
		"outputs/runs/latest/sibling/log": "one", "outputs/runs/latest/sibling/up": "result",
	})
	collected := s.collect(t, id, dir, true)
	sameFiles(t, "place", s.stored(t, id), merge(want, map[string]string{input: "payload"}))
	if collected.Files != len(want) || len(collected.Warnings) > 0 {
		t.Errorf("of %d files %d are said to be stored, with %q", len(want), collected.Files, collected.Warnings)
	}
}

// testLeftOut collects beside a good result what is not stored: each is named in
// a warning.
func (s *suite) testLeftOut(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"secret": secret, "folder/secret": secret})
	for name, c := range map[string]struct {
		plant func(t *testing.T, outputs string)
		says  string
		more  []string // what is stored beside the good result
	}{
		"FileLink":           {func(t *testing.T, o string) { noError(t, os.Symlink(outside+"/secret", o+"/x")) }, "absolute", nil},
		"FolderLink":         {func(t *testing.T, o string) { noError(t, os.Symlink(outside, o+"/x")) }, "absolute", nil},
		"AbsoluteLinkInside": {func(t *testing.T, o string) { noError(t, os.Symlink(o+"/good", o+"/x")) }, "absolute", nil},
		"DeepLink": {func(t *testing.T, o string) {
			noError(t, os.MkdirAll(o+"/a/b", 0o755))
			noError(t, os.Symlink("../../../../.."+outside+"/secret", o+"/a/b/x"))
		}, "leads out", nil},
		"OutAndIn": {func(t *testing.T, o string) { noError(t, os.Symlink("../outputs/good", o+"/x")) }, "leads out", nil},
		"Inputs":   {func(t *testing.T, o string) { noError(t, os.Symlink("../inputs", o+"/x")) }, "leads out", nil},
		"ThroughOut": {func(t *testing.T, o string) {
			noError(t, os.Symlink(outside, o+"/x"))
			noError(t, os.Mkdir(o+"/d", 0o755))
			noError(t, os.Symlink("../x/secret", o+"/d/x"))
		}, "absolute", nil},
		"DeadLink":   {func(t *testing.T, o string) { noError(t, os.Symlink("none", o+"/x")) }, "leads to nothing", nil},
		"DeadFolder": {func(t *testing.T, o string) { noError(t, os.Symlink("none/../good", o+"/x")) }, "leads to nothing", nil},
		"BelowFile":  {func(t *testing.T, o string) { noError(t, os.Symlink("good/x", o+"/x")) }, "leads to nothing", nil},
		"LongLink":   {func(t *testing.T, o string) { noError(t, os.Symlink(strings.Repeat("y", 300), o+"/x")) }, "leads to nothing", nil},
		"SelfLink":   {func(t *testing.T, o string) { noError(t, os.Symlink("x", o+"/x")) }, "too many links", nil},
		"LinkPair":   {func(t *testing.T, o string) { noError(t, os.Symlink("x", o+"/y")); noError(t, os.Symlink("y", o+"/x")) }, "too many links", nil},
		"Loop":       {func(t *testing.T, o string) { noError(t, os.Symlink(".", o+"/x")) }, "leads back", nil},
		"DeepLoop": {func(t *testing.T, o string) {
			write(t, o, map[string]string{"a/b/file": "x"})
			noError(t, os.Symlink("..", o+"/a/b/x"))
		}, "leads back", []string{"outputs/a/b/file"}},
		"MutualLoop": {func(t *testing.T, o string) {
			write(t, o, map[string]string{"a/file": "a", "b/file": "b"})
			noError(t, os.Symlink("../b", o+"/a/x"))
			noError(t, os.Symlink("../a", o+"/b/x"))
		}, "leads back", []string{"outputs/a/file", "outputs/a/x/file", "outputs/b/file", "outputs/b/x/file"}},
		"Pipe": {func(t *testing.T, o string) { noError(t, syscall.Mkfifo(o+"/x", 0o644)) }, "a named pipe", nil},
		"PipeLink": {func(t *testing.T, o string) {
			noError(t, syscall.Mkfifo(o+"/p", 0o644))
			noError(t, os.Symlink("p", o+"/x"))
		}, "a named pipe", nil},
		"Socket":     {func(t *testing.T, o string) { listen(t, o, "x") }, "a socket", nil},
		"Device":     {func(t *testing.T, o string) { device(t, o+"/x") }, "a ", nil},
		"DeviceLink": {func(t *testing.T, o string) { device(t, o+"/d"); noError(t, os.Symlink("d", o+"/x")) }, "a ", nil},
		"NotUTF8":    {func(t *testing.T, o string) { noError(t, os.Symlink("none", o+"/x\xff")) }, `x\xff`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			id := s.fresh(t, map[string]string{input: "payload", "outputs/x": "of an earlier run"})
			dir := t.TempDir()
			write(t, dir, map[string]string{input: secret, "outputs/good": "result"})
			c.plant(t, filepath.Join(dir, "outputs"))
			collected := s.collect(t, id, dir, true)
			if len(collected.Warnings) == 0 {
				t.Error("there is no warning")
			}
			for _, warning := range collected.Warnings {
				if !strings.HasPrefix(warning, `"outputs/`) || !strings.Contains(warning, c.says) || strings.Contains(warning, dir) {
					t.Errorf("warning %q does not say %q", warning, c.says)
				}
			}
			stored := s.stored(t, id)
			for name, content := range stored {
				if strings.Contains(content, secret) {
					t.Errorf("%q holds what a link pointed to", name)
				}
				delete(stored, name)
				stored[name] = ""
			}
			want := map[string]string{input: "", "outputs/good": ""}
			for _, name := range c.more {
				want[name] = ""
			}
			sameFiles(t, "place", stored, want)
			if collected.Files != len(want)-1 {
				t.Errorf("%d files are said to be stored, want %d", collected.Files, len(want)-1)
			}
		})
	}
}

// testManyLeftOut checks that the warnings stay few and short.
func (s *suite) testManyLeftOut(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	dir := t.TempDir()
	write(t, dir, map[string]string{"outputs/good": "result"})
	const links = storage.MaxWarnings + 100
	for n := range links {
		noError(t, os.Symlink("none", filepath.Join(dir, "outputs", fmt.Sprintf("%0250d", n))))
	}
	warnings := s.collect(t, id, dir, true).Warnings
	if len(warnings) != storage.MaxWarnings || !strings.Contains(warnings[len(warnings)-1], fmt.Sprint(links-storage.MaxWarnings+1)) {
		t.Errorf("%d links that lead to nothing are %d warnings, the last %q", links, len(warnings), warnings[len(warnings)-1])
	}
	for _, warning := range warnings {
		if len(warning) > 400 {
			t.Errorf("a warning of %d bytes", len(warning))
		}
	}
	for n := range links - storage.MaxWarnings {
		noError(t, os.Remove(filepath.Join(dir, "outputs", fmt.Sprintf("%0250d", n))))
	}
	if warnings := s.collect(t, id, dir, true).Warnings; len(warnings) != storage.MaxWarnings || strings.Contains(strings.Join(warnings, "\n"), " more ") {
		t.Errorf("%d links are %d warnings: %q", storage.MaxWarnings, len(warnings), warnings)
	}
}

// testLinksMultiply collects eight directories of which each holds eight links to
// the next: sixteen million directories for one that follows them all.
func (s *suite) testLinksMultiply(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	dir := t.TempDir()
	write(t, dir, map[string]string{"outputs/good": "result"})
	for depth := range 8 {
		level := filepath.Join(dir, "outputs", fmt.Sprint(depth))
		noError(t, os.Mkdir(level, 0o755))
		for n := range 8 {
			noError(t, os.Symlink(fmt.Sprintf("../%d", depth+1), filepath.Join(level, fmt.Sprint(n))))
		}
	}
	noError(t, os.Mkdir(filepath.Join(dir, "outputs/8"), 0o755))
	collected := s.collect(t, id, dir, true)
	if !slices.ContainsFunc(collected.Warnings, func(w string) bool { return strings.Contains(w, "too many symbolic links") }) {
		t.Errorf("the warnings are %q", collected.Warnings)
	}
	sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/good": "result"})
}

// testBadOutputs collects what makes the job fail: not all of it can be stored.
func (s *suite) testBadOutputs(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"x": secret})
	for name, plant := range map[string]func(t *testing.T, outputs string){
		"NotUTF8":       func(t *testing.T, o string) { noError(t, os.WriteFile(o+"/a\xff", nil, 0o644)) },
		"NotUTF8Folder": func(t *testing.T, o string) { write(t, o, map[string]string{"a\xff/x": "x"}) },
		"NotUTF8Link":   func(t *testing.T, o string) { noError(t, os.Symlink("good", o+"/a\xff")) },
		"TooDeep":       func(t *testing.T, o string) { noError(t, os.MkdirAll(o+strings.Repeat("/folder", 200), 0o755)) },
		"Replaced":      func(t *testing.T, o string) { noError(t, os.RemoveAll(o)); noError(t, os.Symlink(outside, o)) },
		"File":          func(t *testing.T, o string) { noError(t, os.RemoveAll(o)); noError(t, os.WriteFile(o, nil, 0o644)) },
	} {
		t.Run(name, func(t *testing.T) {
			id := s.fresh(t, map[string]string{input: "payload", "outputs/earlier": "x"})
			dir := t.TempDir()
			write(t, dir, map[string]string{"outputs/good": "result"})
			plant(t, filepath.Join(dir, "outputs"))
			_, err := s.store.Collect(t.Context(), id, openRoot(t, dir), true)
			class(t, "Collect", err, errdefs.IsInvalidArgument)
			if errors.Is(err, storage.ErrWorkDir) {
				t.Errorf("what the runner made is taken for a broken directory: %v", err)
			}
			stored := s.stored(t, id)
			for name, content := range stored {
				if strings.Contains(content, secret) {
					t.Errorf("%q holds what a link pointed to", name)
				}
			}
			if stored["outputs/earlier"] != "x" {
				t.Error("a Collect that failed removed an earlier output")
			}
		})
	}

	t.Run("PlaceReplaced", func(t *testing.T) {
		// The handle is the directory, whatever has its name meanwhile.
		id := s.fresh(t, map[string]string{input: "payload"})
		parent, elsewhere := t.TempDir(), t.TempDir()
		dir := filepath.Join(parent, "job")
		write(t, dir, map[string]string{"outputs/good": "result"})
		write(t, elsewhere, map[string]string{"outputs/x": secret})
		root := openRoot(t, dir)
		noError(t, os.Rename(dir, dir+".moved"))
		noError(t, os.Symlink(elsewhere, dir))
		_, err := s.store.Collect(t.Context(), id, root, true)
		noError(t, err)
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload", "outputs/good": "result"})
	})
}

// testChanging collects while a runner makes files larger and smaller and removes
// them.
func (s *suite) testChanging(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	dir := t.TempDir()
	write(t, dir, map[string]string{"outputs/steady": "result"})
	path := filepath.Join(dir, "outputs/changing")
	stop := make(chan struct{})
	var runner sync.WaitGroup
	defer runner.Wait()
	defer close(stop)
	runner.Go(func() {
		content := []byte(noise(300_000))
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			// Only that it changes matters.
			switch n % 4 {
			case 0, 1:
				_ = os.WriteFile(path, content[:len(content)/(1+n%4)], 0o644)
			case 2:
				_ = os.Truncate(path, 10)
			case 3:
				_ = os.Remove(path)
			}
		}
	})
	for range 30 {
		_, err := s.store.Collect(t.Context(), id, openRoot(t, dir), true)
		if err != nil && (!errdefs.IsUnavailable(err) || errors.Is(err, storage.ErrWorkDir)) {
			t.Fatalf("Collect: %v", err)
		}
	}
}

// stageListed stages from a storage that lists an input with the given name.
func (s *suite) stageListed(t *testing.T, name string) {
	id := s.id()
	store := s.store
	if s.served() {
		bucket, prefix := string(id), ""
		if s.Bucket != "" {
			bucket, prefix = s.Bucket, string(id)+"/"
		}
		server := httptest.NewServer(liar{bucket: bucket, keys: []string{prefix + "inputs/good", prefix + name}})
		defer server.Close()
		store = s.Open(t, server.URL, s.AccessKey, s.SecretKey)
	} else {
		s.place(t, id)
		s.put(t, id, "inputs/good", "good")
		s.put(t, id, name, "evil")
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "jobs", string(id))
	noError(t, os.MkdirAll(dir, 0o755))
	_, err := store.Stage(t.Context(), id, openRoot(t, dir), storage.Options{})
	if strings.HasPrefix(name, "inputs/") {
		class(t, "Stage", err, errdefs.IsInvalidArgument)
		if errors.Is(err, storage.ErrWorkDir) {
			t.Errorf("a name that no directory can take is taken for a broken directory: %v", err)
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) && !strings.Contains(err.Error(), strings.TrimPrefix(name, "inputs/")) {
			t.Errorf("the error does not name %q: %v", name, err)
		}
	} else if err != nil { // it is no input, whatever it is
		t.Errorf("Stage: %v", err)
	}
	for path := range onDisk(t, parent) {
		if path != "jobs/"+string(id)+"/inputs/good" && !strings.HasPrefix(path, "jobs/"+string(id)+"/.") {
			t.Errorf("%q is on disk", path)
		}
	}
}

// liar is a server that lists whatever keys it is told, each of four bytes.
type liar struct {
	bucket string
	keys   []string
}

func (l liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("list-type") {
		w.Header().Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", "bytes 0-3/4")
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = io.WriteString(w, "evil")
		return
	}
	type object struct {
		Key, LastModified, ETag string
		Size                    int
	}
	list := struct {
		XMLName            xml.Name `xml:"ListBucketResult"`
		Name, EncodingType string
		IsTruncated        bool
		Contents           []object
	}{Name: l.bucket, EncodingType: "url"}
	for _, key := range l.keys {
		list.Contents = append(list.Contents, object{url.QueryEscape(key), "2006-01-02T15:04:05.000Z", `"d41d8cd98f00b204e9800998ecf8427e"`, 4})
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(list)
}

// testSwapped collects while a runner keeps swapping a file and a folder for
// links: what the links point to is never stored.
func (s *suite) testSwapped(t *testing.T) {
	id := s.fresh(t, map[string]string{input: "payload"})
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside, map[string]string{"x": secret})
	write(t, dir, map[string]string{"outputs/x": "result", "outputs/d/x": "result", "spare": "result", "spared/x": "result"})
	outputs := filepath.Join(dir, "outputs")
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	defer swapper.Wait()
	defer close(stop)
	swapper.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			// Each step may find the other state; only that it changes matters.
			if n%2 == 0 {
				_ = os.Symlink(filepath.Join(outside, "x"), outputs+"/.link")
				_ = os.Rename(outputs+"/.link", outputs+"/x")
				_ = os.Rename(outputs+"/d", filepath.Join(dir, "aside"))
				_ = os.Symlink(outside, outputs+"/d")
			} else {
				_ = os.Link(filepath.Join(dir, "spare"), outputs+"/.file")
				_ = os.Rename(outputs+"/.file", outputs+"/x")
				_ = os.Remove(outputs + "/d")
				_ = os.Rename(filepath.Join(dir, "aside"), outputs+"/d")
			}
		}
	})
	warned := false
	began := time.Now()
	for n := 0; n < 60 || !warned && time.Since(began) < time.Minute; n++ { // the swapper may begin late
		warned = len(s.collect(t, id, dir, false).Warnings) > 0 || warned
		for name, content := range s.stored(t, id) {
			if content == secret {
				t.Fatalf("%q holds what a link pointed to", name)
			}
		}
	}
	if !warned {
		t.Error("no link was met, or there was no warning")
	}
}

// listen plants a socket in the directory.
func listen(t *testing.T, dir, name string) {
	// A socket's path is short; the directory is reached by a short link to it.
	short := filepath.Join(t.TempDir(), "s")
	noError(t, os.Symlink(dir, short))
	l, err := net.Listen("unix", short+"/"+name)
	noError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

// device plants a device where the test may make one, else a pipe.
func device(t *testing.T, path string) {
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o644, 1<<8|5); err != nil { // /dev/zero, which never ends
		noError(t, syscall.Mkfifo(path, 0o644))
	}
}
