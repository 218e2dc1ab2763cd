package embedded_test

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/storage/embedded"
)

func TestBoto3(t *testing.T) {
	pythons := []string{testenv.Python(t, "boto3", "python3-boto3")}
	// Debian's boto3 is of 2023. Where there is a newer one beside it, which
	// sends checksums in trailers by itself, it counts as another client.
	if other, err := exec.LookPath("python3"); err == nil && other != pythons[0] && exec.Command(other, "-c", "import boto3").Run() == nil {
		pythons = append(pythons, other)
	}
	for _, python := range pythons {
		s := start(t, t.TempDir())
		run(t, nil, python, "testdata/client.py", "http://"+s.addr, accessKey, secretKey)
	}
}

// run runs a command to its end and returns what it prints.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	// A certificate bundle for the outside world is nothing to these clients.
	cmd.Env = append(append(os.Environ(), "AWS_CA_BUNDLE="), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &errs)
	}
	return string(out)
}

// tree writes some files for a client to upload.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range []string{"small", "sub/dir/x", "sub/space and + plus", "sub/ключ 鍵", "empty", "big"} {
		size := []int{10, 5000, 70_000, 1, 0, 21 << 20}[i]
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, random(uint64(i), size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAWSCommandLine(t *testing.T) {
	aws := testenv.Command(t, "aws", "awscli")
	s := start(t, t.TempDir())
	env := []string{
		"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_DEFAULT_REGION=us-east-1",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
	}
	s3 := func(args ...string) string {
		t.Helper()
		return run(t, env, aws, append([]string{"--endpoint-url", "http://" + s.addr}, args...)...)
	}
	from, back := tree(t), t.TempDir()
	s3("s3", "mb", "s3://aws-cli")
	s3("s3", "sync", from, "s3://aws-cli/tree")
	s3("s3", "cp", "--recursive", "s3://aws-cli/tree", "s3://aws-cli/copy")
	s3("s3", "sync", "s3://aws-cli/copy", back)
	run(t, nil, "diff", "-r", from, back)
	if out := s3("s3", "sync", from, "s3://aws-cli/tree", "--size-only"); out != "" {
		t.Errorf("a second sync had something to do:\n%s", out)
	}
	if out := s3("s3", "ls", "s3://aws-cli/tree/"); !strings.Contains(out, "PRE sub/") || !strings.Contains(out, "small") {
		t.Errorf("listed:\n%s", out)
	}
	url := strings.TrimSpace(s3("s3", "presign", "s3://aws-cli/tree/sub/space and + plus"))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer, body := s.send(r); answer.StatusCode != http.StatusOK || !bytes.Equal(body, random(2, 70_000)) {
		t.Errorf("%s answers %s with %d bytes", url, answer.Status, len(body))
	}
	s3("s3", "mv", "s3://aws-cli/copy/big", "s3://aws-cli/moved")
	s3("s3api", "head-object", "--bucket", "aws-cli", "--key", "moved")
	s3("s3", "rb", "--force", "s3://aws-cli")
	if out := s3("s3", "ls"); out != "" {
		t.Errorf("buckets left:\n%s", out)
	}
}

func TestRclone(t *testing.T) {
	rclone := testenv.Command(t, "rclone", "rclone")
	for name, v2 := range signatureVersions {
		t.Run(name, func(t *testing.T) { testRclone(t, rclone, v2) })
	}
}

// signatureVersions says by the test's name whether a client signs by Version 2.
var signatureVersions = map[string]bool{"version 4": false, "version 2": true}

func testRclone(t *testing.T, rclone string, v2 bool) {
	s := start(t, t.TempDir())
	env := []string{
		"RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_S_TYPE=s3", "RCLONE_CONFIG_S_PROVIDER=Other", "RCLONE_CONFIG_S_REGION=us-east-1",
		"RCLONE_CONFIG_S_ACCESS_KEY_ID=" + accessKey, "RCLONE_CONFIG_S_SECRET_ACCESS_KEY=" + secretKey,
		"RCLONE_CONFIG_S_ENDPOINT=http://" + s.addr, "RCLONE_RETRIES=1", "RCLONE_LOW_LEVEL_RETRIES=1",
		"RCLONE_S3_UPLOAD_CUTOFF=5M", "RCLONE_S3_CHUNK_SIZE=5M", "RCLONE_S3_COPY_CUTOFF=6M", "RCLONE_S3_V2_AUTH=" + strconv.FormatBool(v2),
	}
	rc := func(args ...string) string {
		t.Helper()
		return run(t, env, rclone, args...)
	}
	from, back := tree(t), t.TempDir()
	rc("mkdir", "s:rclone-bucket")
	rc("copy", from, "s:rclone-bucket/tree")
	rc("check", "--download", from, "s:rclone-bucket/tree")
	rc("check", from, "s:rclone-bucket/tree")
	rc("copy", "s:rclone-bucket/tree", "s:rclone-bucket/copy")
	rc("sync", "s:rclone-bucket/copy", back)
	run(t, nil, "diff", "-r", from, back)
	if out := rc("lsf", "-R", "--files-only", "s:rclone-bucket/tree"); strings.Count(out, "\n") != 6 {
		t.Errorf("listed:\n%s", out)
	}
	if out := rc("cat", "--offset", "3", "--count", "4", "s:rclone-bucket/tree/small"); out != string(random(0, 10)[3:7]) {
		t.Errorf("cat of a range gave %q", out)
	}
	rc("cleanup", "s:rclone-bucket")
	rc("moveto", "s:rclone-bucket/copy/big", "s:rclone-bucket/moved")
	rc("deletefile", "s:rclone-bucket/moved")
	rc("purge", "s:rclone-bucket")
	if out := rc("lsd", "s:"); out != "" {
		t.Errorf("buckets left:\n%s", out)
	}
}

func TestS3cmd(t *testing.T) {
	s3cmd := testenv.Command(t, "s3cmd", "s3cmd")
	for name, v2 := range signatureVersions {
		t.Run(name, func(t *testing.T) { testS3cmd(t, s3cmd, v2) })
	}
}

func testS3cmd(t *testing.T, s3cmd string, v2 bool) {
	s := start(t, t.TempDir())
	config := filepath.Join(t.TempDir(), "s3cfg")
	text := "[default]\naccess_key = " + accessKey + "\nsecret_key = " + secretKey + "\nhost_base = " + s.addr + "\nhost_bucket = " + s.addr +
		"\nuse_https = False\nbucket_location = us-east-1\nmultipart_chunk_size_mb = 5\nsignature_v2 = " + strconv.FormatBool(v2) + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := func(args ...string) string {
		t.Helper()
		return run(t, []string{"LC_ALL=C.UTF-8"}, s3cmd, append([]string{"-c", config, "--no-progress"}, args...)...)
	}
	from, back := tree(t), t.TempDir()
	cmd("mb", "s3://s3cmd-bucket")
	cmd("sync", from+"/", "s3://s3cmd-bucket/tree/")
	if out := cmd("sync", from+"/", "s3://s3cmd-bucket/tree/"); strings.Contains(out, "upload:") {
		t.Errorf("a second sync had something to do:\n%s", out)
	}
	cmd("cp", "--recursive", "s3://s3cmd-bucket/tree/", "s3://s3cmd-bucket/copy/")
	cmd("sync", "s3://s3cmd-bucket/copy/", back+"/")
	run(t, nil, "diff", "-r", from, back)
	if out := cmd("ls", "s3://s3cmd-bucket/tree/"); !strings.Contains(out, "DIR") || !strings.Contains(out, "small") {
		t.Errorf("listed:\n%s", out)
	}
	if out := cmd("info", "s3://s3cmd-bucket/tree/small"); !strings.Contains(out, "10") {
		t.Errorf("info:\n%s", out)
	}
	cmd("mv", "s3://s3cmd-bucket/copy/big", "s3://s3cmd-bucket/moved")
	cmd("setacl", "--acl-private", "s3://s3cmd-bucket/moved")
	cmd("del", "--recursive", "--force", "s3://s3cmd-bucket/")
	cmd("rb", "s3://s3cmd-bucket")
	if out := cmd("ls"); out != "" {
		t.Errorf("buckets left:\n%s", out)
	}
}

// TestRestic has a backup program keep its repository in the storage, which needs
// what it wrote to be there, whole and listed, at once.
func TestRestic(t *testing.T) {
	restic := testenv.Command(t, "restic", "restic")
	s := start(t, t.TempDir())
	env := []string{
		"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "RESTIC_PASSWORD=sheep",
		"RESTIC_REPOSITORY=s3:http://" + s.addr + "/restic-bucket/repository", "RESTIC_CACHE_DIR=" + t.TempDir(),
	}
	from, back := tree(t), t.TempDir()
	run(t, env, restic, "init")
	run(t, env, restic, "backup", from)
	if err := os.WriteFile(filepath.Join(from, "later"), random(9, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, env, restic, "backup", from)
	run(t, env, restic, "check", "--read-data")
	run(t, env, restic, "forget", "--keep-last", "1", "--prune")
	run(t, env, restic, "restore", "latest", "--target", back)
	run(t, nil, "diff", "-r", from, filepath.Join(back, from))
}

// TestS3fs mounts a bucket as a file system: renames are copies, and files are
// rewritten in place.
func TestS3fs(t *testing.T) {
	s3fs := testenv.Command(t, "s3fs", "s3fs")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		testenv.Missing(t, "FUSE", err.Error())
	}
	const secret = "without-spaces" // s3fs takes no others
	s := start(t, t.TempDir(), func(c *embedded.Config) { c.SecretKey = secret })
	s.bucket(s.client(func(o *minio.Options) { o.Creds = credentials.NewStaticV4(accessKey, secret, "") }), "s3fs-bucket")
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte(accessKey+":"+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	mount := func() (dir string, unmount func()) {
		t.Helper()
		dir = t.TempDir()
		run(t, nil, s3fs, "s3fs-bucket", dir, "-o", "url=http://"+s.addr+",use_path_request_style,passwd_file="+keys+",multipart_size=10")
		unmount = sync.OnceFunc(func() { run(t, nil, "umount", dir) })
		t.Cleanup(unmount)
		return dir, unmount
	}
	from := tree(t)
	dir, unmount := mount()
	run(t, nil, "cp", "-r", from, dir+"/tree")
	run(t, nil, "mv", dir+"/tree/small", dir+"/tree/renamed")
	run(t, nil, "sh", "-c", "echo more >> "+dir+"/tree/sub/dir/x && echo more >> "+from+"/sub/dir/x && mv "+from+"/small "+from+"/renamed")
	run(t, nil, "rm", dir+"/tree/empty", from+"/empty")
	unmount()
	dir, unmount = mount() // nothing comes from a cache
	run(t, nil, "diff", "-r", from, dir+"/tree")
	unmount()
}
