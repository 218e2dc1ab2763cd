package s3_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/storagetest"
)

// BenchmarkManyFiles stores many small outputs of a job in the embedded storage,
// by both ways there are, in turn with `rclone copy` of the same files from the
// same disk to the same server. Their number is BENCH_FILES, 20,000 by default.
// That a Store has at least 0.8 times the rate of rclone is a promise.
func BenchmarkManyFiles(b *testing.B) {
	rclone := testenv.Command(b, "rclone", "rclone")
	files := 20_000
	if text := os.Getenv("BENCH_FILES"); text != "" {
		var err error
		files, err = strconv.Atoi(text)
		fatalB(b, err)
	}
	dir := b.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 256) // 4 KiB
	for i := range files {
		name := filepath.Join(dir, "outputs", fmt.Sprint(i/1000), fmt.Sprintf("%06d", i))
		if i%1000 == 0 {
			fatalB(b, os.MkdirAll(filepath.Dir(name), 0o755))
		}
		fatalB(b, os.WriteFile(name, content, 0o644))
	}
	h, server := startEmbedded(b, "")
	direct, err := server.Store("", nil)
	fatalB(b, err)
	stores := map[string]storage.Store{"direct": direct, "http": h.Open(b, h.URL, h.AccessKey, h.SecretKey)}
	env := append(os.Environ(), "AWS_CA_BUNDLE=", "RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_S_TYPE=s3", "RCLONE_CONFIG_S_PROVIDER=Other", "RCLONE_CONFIG_S_REGION=us-east-1",
		"RCLONE_CONFIG_S_ACCESS_KEY_ID="+h.AccessKey, "RCLONE_CONFIG_S_SECRET_ACCESS_KEY="+h.SecretKey, "RCLONE_CONFIG_S_ENDPOINT="+h.URL)

	rates := map[string][]float64{}
	round := 0
	way := func(name string, store func(id job.ID) error) {
		b.Helper()
		id := job.ID(fmt.Sprintf("many-%s-%d", name, round))
		fatalB(b, direct.Init(b.Context(), id, nil))
		began := time.Now()
		fatalB(b, store(id))
		rates[name] = append(rates[name], float64(files)/time.Since(began).Seconds())
		stored, err := storagetest.All(direct.List(b.Context(), id, job.OutputDir+"/"))
		fatalB(b, err)
		if len(stored) != files {
			b.Fatalf("%s: %d files are stored", name, len(stored))
		}
		fatalB(b, direct.Remove(b.Context(), id))
	}
	for b.Loop() {
		for name, store := range stores {
			way(name, func(id job.ID) error {
				_, err := store.Collect(b.Context(), id, openRoot(b, dir), false)
				return err
			})
		}
		for _, transfers := range []string{"8", "32"} { // the best settings are not the same everywhere
			way("rclone-"+transfers, func(id job.ID) error {
				cmd := exec.CommandContext(b.Context(), rclone, "copy", "--transfers", transfers, "--no-check-dest", "--s3-no-check-bucket", "--s3-no-head",
					filepath.Join(dir, "outputs"), "s:"+string(id)+"/outputs")
				cmd.Env = env
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w\n%s", err, out)
				}
				return nil
			})
		}
		round++
	}
	for name, r := range rates {
		b.ReportMetric(slices.Max(r), name+"-files/s")
	}
	best := max(slices.Max(rates["rclone-8"]), slices.Max(rates["rclone-32"]))
	for name := range stores {
		ratio := slices.Max(rates[name]) / best
		b.ReportMetric(ratio, name+"-of-rclone")
		if ratio < 0.8 {
			b.Errorf("%s: %.2f times the rate of rclone copy", name, ratio)
		}
	}
}
