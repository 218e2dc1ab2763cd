package s3_test

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/storage/storagetest"
)

// BenchmarkTransfers stages and collects the files of a job on an S3 server, in turn
// with `rclone copy` and `s5cmd cp` of the same files between the same server and the
// same disk, each with the better of two settings, and compares the least times. There are BENCH_FILES files of 4 KiB
// (2,000), and BENCH_LARGE files of BENCH_LARGE_MIB MiB (3 of 64): 100000, 10 and 1024 are
// 10 GiB of large and 400 MiB of small files. That a Store adds at most 64 MiB of memory is a
// promise.
func BenchmarkTransfers(b *testing.B) {
	server := testenv.StartMinIO(b)
	store := open(b, s3.Config{URL: server.URL, AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	for _, c := range []struct {
		name  string
		files int
		size  int64
	}{
		{"Small", number(b, "BENCH_FILES", 2000), 4 << 10},
		{"Large", number(b, "BENCH_LARGE", 3), int64(number(b, "BENCH_LARGE_MIB", 64)) << 20},
	} {
		b.Run(c.name, func(b *testing.B) { transfers(b, server, store, c.files, c.size) })
	}
}

func transfers(b *testing.B, server *testenv.MinIO, store storage.Store, files int, size int64) {
	from := b.TempDir() // outputs/…
	for i := range files {
		writeRandom(b, filepath.Join(from, job.OutputDir, strconv.Itoa(i/1000), fmt.Sprintf("%06d", i)), size)
	}
	places := 0
	place := func() job.ID {
		b.Helper()
		places++
		id := job.ID(fmt.Sprintf("transfers-%s-%d", strings.ToLower(filepath.Base(b.Name())), places))
		fatalB(b, store.Init(b.Context(), id, nil))
		return id
	}
	commands := copiers(b, server)
	source := place()
	fatalB(b, commands["s5cmd-64"](filepath.Join(from, job.OutputDir)+"/", fmt.Sprintf("s3://%s/inputs/", source)))

	collect := map[string]func(to job.ID) error{"store": func(to job.ID) error {
		_, err := store.Collect(b.Context(), to, openRoot(b, from), true)
		return err
	}}
	stage := map[string]func(to string) error{"store": func(to string) error {
		_, err := store.Stage(b.Context(), source, openRoot(b, to), storage.Options{})
		return err
	}}
	for name, run := range commands {
		collect[name] = func(to job.ID) error {
			return run(filepath.Join(from, job.OutputDir)+"/", fmt.Sprintf("s3://%s/outputs/", to))
		}
		stage[name] = func(to string) error {
			return run(fmt.Sprintf("s3://%s/inputs/", source), filepath.Join(to, job.InputDir)+"/")
		}
	}
	names := slices.Sorted(maps.Keys(collect))
	took := map[string]map[string][]time.Duration{"collect": {}, "stage": {}}
	var grown int64
	measure := func(direction, name string, run func() error) {
		b.Helper()
		timed := func() {
			began := time.Now()
			fatalB(b, run())
			took[direction][name] = append(took[direction][name], time.Since(began))
		}
		if name != "store" {
			timed()
			return
		}
		grown = max(grown, growth(b, timed))
	}
	// In each round another one is the first: what the others have removed or left to the
	// server's disk costs the first one the most. The round before warms up.
	round := 0
	turns := func() {
		var made []job.ID
		for i := range names {
			name, id := names[(i+round)%len(names)], place()
			made = append(made, id)
			measure("collect", name, func() error { return collect[name](id) })
			if found, err := storagetest.All(store.List(b.Context(), id, job.OutputDir+"/")); err != nil || len(found) != files {
				b.Fatalf("%s: %d files of %d are stored, %v", name, len(found), files, err)
			}
		}
		var dirs []string
		for i := range names {
			name, dir := names[(i+round)%len(names)], b.TempDir()
			dirs = append(dirs, dir)
			measure("stage", name, func() error { return stage[name](dir) })
			if found := countFiles(b, dir); found != files+1 { // with the empty input
				b.Fatalf("%s: %d files of %d in %s", name, found, files+1, dir)
			}
		}
		for i := range names {
			fatalB(b, os.RemoveAll(dirs[i]))
			fatalB(b, store.Remove(b.Context(), made[i]))
		}
		round++
	}
	turns()
	clear(took["collect"])
	clear(took["stage"])
	for b.Loop() {
		turns()
	}
	fatalB(b, store.Remove(b.Context(), source))
	for direction, of := range took {
		best := map[string]time.Duration{}
		for name, times := range of {
			best[strings.Split(name, "-")[0]] = min(orMax(best[strings.Split(name, "-")[0]]), slices.Min(times))
		}
		for _, other := range []string{"rclone", "s5cmd"} {
			ratio := best["store"].Seconds() / best[other].Seconds()
			b.ReportMetric(ratio, direction+"-of-"+other)
			if ratio > 1 {
				b.Logf("%s: %.2f times as long as %s: %v", direction, ratio, other, of)
			}
		}
	}
	b.ReportMetric(float64(grown)/(1<<20), "MiB-of-memory")
	if grown > 64<<20 {
		b.Errorf("transfers add %d MiB of memory", grown>>20)
	}
}

// copiers are the commands that copy a directory between a disk and a server, each with
// two settings: which one is the faster differs.
func copiers(b *testing.B, server *testenv.MinIO) map[string]func(from, to string) error {
	rclone, s5cmd := testenv.Command(b, "rclone", "rclone"), testenv.S5cmd(b)
	env := append(os.Environ(), "AWS_CA_BUNDLE=", "RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Minio", "RCLONE_CONFIG_S3_REGION=us-east-1",
		"RCLONE_CONFIG_S3_ACCESS_KEY_ID="+server.AccessKey, "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY="+server.SecretKey, "RCLONE_CONFIG_S3_ENDPOINT="+server.URL,
		"AWS_ACCESS_KEY_ID="+server.AccessKey, "AWS_SECRET_ACCESS_KEY="+server.SecretKey, "AWS_REGION=us-east-1", "S3_ENDPOINT_URL="+server.URL)
	command := func(program string, args ...string) error {
		cmd := exec.CommandContext(b.Context(), program, args...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	all := map[string]func(from, to string) error{}
	for _, parallel := range []string{"8", "32"} {
		all["rclone-"+parallel] = func(from, to string) error {
			place := func(text string) string { return strings.Replace(text, "s3://", "s3:", 1) }
			return command(rclone, "copy", "--transfers", parallel, "--checkers", parallel, "--no-check-dest", "--s3-no-check-bucket", "--s3-no-head", "--s3-upload-concurrency", "8", place(from), place(to))
		}
	}
	for _, parallel := range []string{"8", "64"} {
		all["s5cmd-"+parallel] = func(from, to string) error {
			if strings.HasPrefix(from, "s3://") && strings.HasSuffix(from, "/") {
				from += "*"
			}
			return command(s5cmd, "--numworkers", parallel, "--log", "error", "cp", "--concurrency", "8", from, to)
		}
	}
	return all
}

// countFiles counts the regular files below dir.
func countFiles(b *testing.B, dir string) int {
	b.Helper()
	found := 0
	fatalB(b, filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			found++
		}
		return err
	}))
	return found
}

func orMax(d time.Duration) time.Duration {
	if d == 0 {
		return time.Duration(1<<63 - 1)
	}
	return d
}

// number is a positive number from the environment.
func number(b *testing.B, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	fatalB(b, err)
	return n
}

// writeRandom makes a file of the given size, whose content no program can shorten.
func writeRandom(b *testing.B, path string, size int64) {
	b.Helper()
	fatalB(b, os.MkdirAll(filepath.Dir(path), 0o755))
	file, err := os.Create(path)
	fatalB(b, err)
	defer file.Close()
	_, err = io.Copy(file, io.LimitReader(rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032d", size)))), size))
	fatalB(b, err)
}
