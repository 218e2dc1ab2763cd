package storagetest

import (
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
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

	t.Run("StageThroughLink", func(t *testing.T) {
		for name, link := range map[string]string{"Folder": "inputs/sub", "Inputs": "inputs"} {
			t.Run(name, func(t *testing.T) {
				id := s.fresh(t, map[string]string{"inputs/sub/file": "payload"})
				dir, outside := t.TempDir(), t.TempDir()
				write(t, outside, map[string]string{"keep": "this"})
				noError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, link)), 0o755))
				noError(t, os.Symlink(outside, filepath.Join(dir, link)))
				_, err := s.store.Stage(t.Context(), id, dir, 0)
				class(t, "Stage", err, errdefs.IsInvalidArgument)
				sameFiles(t, "what the link points to", onDisk(t, outside), map[string]string{"keep": "this"})
			})
		}
	})

	t.Run("StageOverLink", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload"})
		dir, outside := t.TempDir(), t.TempDir()
		write(t, outside, map[string]string{"keep": "this"})
		noError(t, os.Mkdir(filepath.Join(dir, "inputs"), 0o755))
		noError(t, os.Symlink(filepath.Join(outside, "keep"), filepath.Join(dir, input)))
		s.stage(t, id, dir, map[string]string{input: "payload"})
		sameFiles(t, "what the link points to", onDisk(t, outside), map[string]string{"keep": "this"})
	})

	t.Run("Outputs", func(t *testing.T) {
		outside := t.TempDir()
		write(t, outside, map[string]string{"secret": secret})
		for name, plant := range map[string]func(t *testing.T, outputs string){
			"FileLink":   func(t *testing.T, o string) { noError(t, os.Symlink(filepath.Join(outside, "secret"), o+"/x")) },
			"FolderLink": func(t *testing.T, o string) { noError(t, os.Symlink(outside, o+"/x")) },
			"InnerLink":  func(t *testing.T, o string) { noError(t, os.Symlink("good", o+"/x")) },
			"DeadLink":   func(t *testing.T, o string) { noError(t, os.Symlink("none", o+"/x")) },
			"DeepLink": func(t *testing.T, o string) {
				noError(t, os.MkdirAll(o+"/a/b", 0o755))
				noError(t, os.Symlink("../../../../../"+outside+"/secret", o+"/a/b/x"))
			},
			"Pipe":     func(t *testing.T, o string) { noError(t, syscall.Mkfifo(o+"/x", 0o644)) },
			"Socket":   listen,
			"Device":   func(t *testing.T, o string) { device(t, o+"/x") },
			"NotUTF8":  func(t *testing.T, o string) { noError(t, os.WriteFile(o+"/a\xff", nil, 0o644)) },
			"TooDeep":  func(t *testing.T, o string) { noError(t, os.MkdirAll(o+strings.Repeat("/folder", 200), 0o755)) },
			"Replaced": func(t *testing.T, o string) { noError(t, os.RemoveAll(o)); noError(t, os.Symlink(outside, o)) },
			"PlaceReplaced": func(t *testing.T, o string) {
				place, elsewhere := filepath.Dir(o), t.TempDir()
				write(t, elsewhere, map[string]string{"outputs/x": secret})
				noError(t, os.RemoveAll(place))
				noError(t, os.Symlink(elsewhere, place))
			},
			"File": func(t *testing.T, o string) { noError(t, os.RemoveAll(o)); noError(t, os.WriteFile(o, nil, 0o644)) },
		} {
			t.Run(name, func(t *testing.T) {
				id := s.fresh(t, map[string]string{input: "payload"})
				dir := t.TempDir()
				write(t, dir, map[string]string{"outputs/good": "result"})
				plant(t, filepath.Join(dir, "outputs"))
				class(t, "Collect", s.store.Collect(t.Context(), id, dir, true), errdefs.IsInvalidArgument)
				for name, content := range s.stored(t, id) {
					if strings.Contains(content, secret) {
						t.Errorf("%q holds what a link pointed to", name)
					}
				}
			})
		}
	})

	t.Run("SwappedOutputs", s.testSwapped)
}

// stageListed stages from a server that lists an input with the given name.
func (s *suite) stageListed(t *testing.T, name string) {
	id := s.id()
	bucket, prefix := s.at(id, "")
	server := httptest.NewServer(liar{bucket: bucket, keys: []string{prefix + "inputs/good", prefix + name}})
	defer server.Close()
	store := s.Open(t, server.URL, s.AccessKey, s.SecretKey)
	parent := t.TempDir()
	dir := filepath.Join(parent, "jobs", string(id))
	noError(t, os.MkdirAll(dir, 0o755))
	_, err := store.Stage(t.Context(), id, dir, 0)
	if strings.HasPrefix(name, "inputs/") {
		class(t, "Stage", err, errdefs.IsInvalidArgument)
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
// links: whatever Collect answers, what the links point to is never stored.
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
	for range 60 {
		if err := s.store.Collect(t.Context(), id, dir, false); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("Collect: %v", err)
		}
		for name, content := range s.stored(t, id) {
			if content == secret {
				t.Fatalf("%q holds what a link pointed to", name)
			}
		}
	}
}

func listen(t *testing.T, outputs string) {
	// A socket's path is short; the folder is reached by a short link to it.
	short := filepath.Join(t.TempDir(), "s")
	noError(t, os.Symlink(outputs, short))
	l, err := net.Listen("unix", short+"/x")
	noError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

// device plants a device where the test may make one, else a pipe.
func device(t *testing.T, path string) {
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o644, 1<<8|5); err != nil { // /dev/zero, which never ends
		noError(t, syscall.Mkfifo(path, 0o644))
	}
}
