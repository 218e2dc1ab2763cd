package containerderr

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The kernel's texts are those that Go has for its error numbers.
func TestKernelTexts(t *testing.T) {
	for errno, is := range map[syscall.Errno]func(error) bool{
		syscall.ENOSPC: DiskFull, syscall.EDQUOT: DiskFull,
		syscall.ENOMEM: ShortOfResources, syscall.EAGAIN: ShortOfResources, syscall.EMFILE: ShortOfResources,
		syscall.EEXIST: SnapshotInTheWay, syscall.EIO: DiskBroken,
	} {
		// As gRPC hands it on: a text.
		if err := errors.New("rpc error: " + (&fs.PathError{Op: "mkdir", Path: "/x", Err: errno}).Error()); !is(err) {
			t.Errorf("%v is not recognized", err)
		}
	}
	for name, is := range map[string]func(error) bool{
		"DiskFull": DiskFull, "DiskBroken": DiskBroken, "CgroupsReadOnly": CgroupsReadOnly, "ShortOfResources": ShortOfResources, "WrongContent": WrongContent, "WrongCommit": WrongCommit,
		"NoPlatform": NoPlatform, "SchemaOne": SchemaOne, "SnapshotInTheWay": SnapshotInTheWay, "Unreachable": Unreachable, "NoProgram": NoProgram,
	} {
		if is(nil) || is(errors.New("something else")) || is(fmt.Errorf("read: %w", errdefs.ErrNotFound)) {
			t.Errorf("%s recognizes what it is not", name)
		}
	}
}

// What containerd's content store says of content that is not as promised.
func TestWrongCommit(t *testing.T) {
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, expected := range map[string]ocispec.Descriptor{
		"digest": {Digest: digest.FromString("other"), Size: 4},
		"size":   {Digest: digest.FromString("this"), Size: 5},
	} {
		err := content.WriteBlob(t.Context(), store, name, strings.NewReader("this"), expected)
		if name == "size" { // WriteBlob notices itself; a broken store would not
			w, werr := store.Writer(t.Context(), content.WithRef("by hand"))
			if werr != nil {
				t.Fatal(werr)
			}
			_, _ = w.Write([]byte("this"))
			err = w.Commit(t.Context(), expected.Size, expected.Digest)
			w.Close()
		}
		if !WrongCommit(err) || !WrongContent(err) {
			t.Errorf("%s: %v is not recognized", name, err)
		}
	}
}

// What containerd's client says of an index without this platform.
func TestNoPlatform(t *testing.T) {
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	index := []byte(`{"schemaVersion": 2, "mediaType": "` + ocispec.MediaTypeImageIndex + `", "manifests": [{"mediaType": "` + ocispec.MediaTypeImageManifest +
		`", "digest": "` + digest.FromString("m").String() + `", "size": 1, "platform": {"os": "plan9", "architecture": "mips"}}]}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	if err := content.WriteBlob(t.Context(), store, "index", bytes.NewReader(index), desc); err != nil {
		t.Fatal(err)
	}
	handler := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), platforms.Only(platforms.MustParse("linux/amd64"))), platforms.Only(platforms.MustParse("linux/amd64")), 1)
	if _, err := handler.Handle(t.Context(), desc); !NoPlatform(err) {
		t.Errorf("%v is not recognized", err)
	}
}

// The texts that take a broken daemon to provoke stand in the pinned source.
func TestTextsOfThePinnedVersion(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/containerd/containerd/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	for text, file := range map[string]string{
		wrongDiffID:                        "core/unpack/unpacker.go",
		unexpectedDigest:                   "plugins/content/local/writer.go",
		unexpectedSize:                     "plugins/content/local/writer.go",
		schemaOne:                          "core/remotes/docker/resolver.go",
		noPlatform:                         "core/images/handlers.go",
		tokenFetch:                         "core/remotes/docker/authorizer.go",
		anonymousTokenFetch:                "core/remotes/docker/authorizer.go",
		strings.Split(brokenWrite, ":")[0]: "core/content/proxy/content_writer.go",
	} {
		source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), file))
		if err != nil || !bytes.Contains(source, []byte(text)) {
			t.Errorf("%s does not say %q: %v", file, text, err)
		}
	}
}

// What runc says where it cannot make a group, and where the model is at fault.
func TestCgroupsReadOnly(t *testing.T) {
	const create = "OCI runtime create failed: runc create failed: unable to start container process: "
	for text, want := range map[string]bool{
		create + "unable to apply cgroup configuration: mkdir /sys/fs/cgroup/shepherd.slice: read-only file system: unknown":                                    true,
		create + "unable to apply cgroup configuration: mkdir /sys/fs/cgroup/memory/shepherd.slice/shepherd-0: read-only file system: unknown":                  true,
		create + `error mounting "/srv/weights" to rootfs at "/weights": mkdir /weights: read-only file system: unknown`:                                        false,
		create + "unable to apply cgroup configuration: failed to write 1: open /sys/fs/cgroup/shepherd.slice/cgroup.procs: no such file or directory: unknown": false,
	} {
		if got := CgroupsReadOnly(errors.New(text)); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}

func TestCore(t *testing.T) {
	for text, want := range map[string]string{
		`task: failed to create shim task: OCI runtime create failed: unable to start container process: exec: "serve": executable file not found in $PATH: unknown`: `exec: "serve": executable file not found in $PATH`,
		`failed commit on ref "x": commit failed: unexpected commit digest a, expected b: failed precondition`:                                                       "unexpected commit digest a, expected b",
		"commit failed: unexpected commit digest a, expected b: failed precondition\ncommit failed: unexpected commit digest a, expected b: failed precondition":     "unexpected commit digest a, expected b",
		`something else: unknown`: "something else",
	} {
		if got := Core(errors.New(text)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What runtimes say of a program that the image does not have.
func TestNoProgram(t *testing.T) {
	for _, text := range []string{
		`runc create failed: unable to start container process: exec: "no-such": executable file not found in $PATH: unknown`,
		`runc create failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory: unknown`,
		`failed to create shim task: OCI runtime create failed: exec: "/run.sh": no such file or directory`,
		"crun: executable file `no-such` not found in $PATH: No such file or directory",
	} {
		if !NoProgram(errors.New(text)) {
			t.Errorf("%q is not recognized", text)
		}
	}
	if NoProgram(errors.New("mount /srv/weights: no such file or directory")) {
		t.Error("a missing mount is taken for a missing program")
	}
}
