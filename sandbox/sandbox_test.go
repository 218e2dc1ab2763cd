package sandbox_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/sandbox"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

func open(dir string) (*sandbox.Sandbox, error) {
	return sandbox.Open(sandbox.Config{
		Dir: dir, StorageAddress: "127.0.0.1:0", RegistryAddress: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
}

// start serves a sandbox until the returned function is called or the test
// ends.
func start(t *testing.T, dir string) (*sandbox.Sandbox, func()) {
	t.Helper()
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	var stopped bool
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func client(t *testing.T, s *sandbox.Sandbox) *minio.Client {
	t.Helper()
	c, err := minio.New(s.StorageAddr(), &minio.Options{Creds: credentials.NewStaticV4(sandbox.AccessKey, sandbox.SecretKey, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func push(t *testing.T, s *sandbox.Sandbox, image string, img v1.Image) {
	t.Helper()
	ref, err := name.ParseReference(s.RegistryAddr()+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatalf("push %s: %v", image, err)
	}
}

// A restart keeps files and images; containerd can pull and run what was pushed
// before it, and what containerd pushes can be pulled again.
func TestContainerdAfterARestart(t *testing.T) {
	ctd := testenv.StartContainerd(t)
	dir := t.TempDir()
	s, stop := start(t, dir)
	layers := []v1.Layer{
		testenv.RandomLayer(t, "data", 3<<20, 1),
		testenv.Layer(t, map[string][]byte{"dir/file": []byte("in the image")}),
	}
	push(t, s, "team/model:v1", testenv.Image(t, v1.Config{}, layers...))
	c := client(t, s)
	if err := c.MakeBucket(t.Context(), "job-1", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutObject(t.Context(), "job-1", "inputs/input", strings.NewReader("x"), 1, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	stop()

	s, _ = start(t, dir)
	object, err := client(t, s).GetObject(t.Context(), "job-1", "inputs/input", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(object); err != nil || string(content) != "x" {
		t.Errorf("the file after a restart: %q, %v", content, err)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
	const namespace = "sandbox-test"
	pulled := s.RegistryAddr() + "/team/model:v1"
	ctd.Ctr(t, namespace, "images", "pull", "--plain-http", pulled)

	pushed := s.RegistryAddr() + "/again/model:v2"
	ctd.Ctr(t, namespace, "images", "tag", pulled, pushed)
	ctd.Ctr(t, namespace, "images", "push", "--plain-http", pushed)
	ctd.Ctr(t, namespace, "images", "rm", "--sync", pulled, pushed)
	if left := ctd.Ctr(t, namespace, "content", "ls", "-q"); left != "" {
		t.Fatalf("content left: %s", left)
	}
	ctd.Ctr(t, namespace, "images", "pull", "--plain-http", pushed)
	if check := ctd.Ctr(t, namespace, "images", "check", "name=="+pushed); !strings.Contains(check, "complete (3/3)") {
		t.Errorf("what containerd pushed and pulled again: %s", check)
	}
	root := t.TempDir()
	ctd.Ctr(t, namespace, "images", "mount", pushed, root)
	content, err := os.ReadFile(filepath.Join(root, "dir/file"))
	if string(content) != "in the image" {
		t.Errorf("the file in the image: %q, %v", content, err)
	}
	ctd.Ctr(t, namespace, "images", "unmount", "--rm", root)
	ctd.Ctr(t, namespace, "images", "rm", "--sync", pushed)
}

func TestLifetime(t *testing.T) {
	dir := t.TempDir()
	first, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second sandbox in the same directory: %v", err)
	}
	for range 2 { // before Serve, and twice
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- again.Serve(context.Background()) }()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve, closed: %v", err)
	}
}

// An address that is in use is named, and nothing else stays taken.
func TestAddressInUse(t *testing.T) {
	first, _ := start(t, t.TempDir())
	for _, c := range []sandbox.Config{
		{StorageAddress: first.StorageAddr(), RegistryAddress: "127.0.0.1:0"},
		{StorageAddress: "127.0.0.1:0", RegistryAddress: first.RegistryAddr()},
	} {
		c.Dir, c.Log = t.TempDir(), slog.New(slog.DiscardHandler)
		_, err := sandbox.Open(c)
		if err == nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
			t.Errorf("an address in use: %v", err)
		}
		s, err := open(c.Dir)
		if err != nil {
			t.Fatalf("the directory stays taken: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
