package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

// againstEnv names the revision that BenchmarkAgainst compares this tree with.
const againstEnv = "SHEPHERD_BENCH_AGAINST"

// BenchmarkAgainst compares this tree's daemon with that of another revision, with
// embedded storage and with a server: both run all the time and do the same no-op jobs
// in turns, so that other load on the machine affects both alike. The result is the
// median of the rounds' ratios; the table also has their range.
func BenchmarkAgainst(b *testing.B) {
	revision := os.Getenv(againstEnv)
	if revision == "" {
		b.Skip("no revision is named: make bench-against REV=…")
	}
	other := buildRevision(b, revision)
	embedded := [2]*world{newEmbeddedWorld(b, programs), newEmbeddedWorld(b, other)}
	compare(b, "", revision, embedded, []load{{1, 150}, {16, 320}, {64, 640}})
	for _, w := range embedded {
		w.stop()
	}
	server := testenv.StartMinIO(b)
	compare(b, ", MinIO", revision, [2]*world{newServerWorld(b, programs, server), newServerWorld(b, other, server)}, []load{{1, 150}, {16, 320}})
}

// load is how many clients are served at a time, and how many jobs in a round.
type load struct{ clients, jobs int }

// compare starts the worlds, ours and that of the revision, and runs jobs in both. The
// names of its figures have the suffix.
func compare(b *testing.B, suffix, revision string, worlds [2]*world, loads []load) {
	b.Helper()
	const ours, theirs = 0, 1
	for i, w := range worlds {
		w.start()
		for n := range 20 { // loads the model and warms the caches
			if err := w.do(fmt.Sprintf("warm-%d-%d", i, n), "noop:v1"); err != nil {
				w.fatal("%v", err)
			}
		}
	}
	const rounds = 7
	for _, load := range loads {
		var rate, cpu [2][]float64
		for round := range rounds + 1 { // the first warms up
			for _, i := range []int{ours, theirs} {
				if round%2 == 1 { // the order alternates
					i = 1 - i
				}
				w := worlds[i]
				used, began := cpuTime(b, w.daemon.Process.Pid), time.Now()
				together(b, load.clients, load.jobs, func(n int) error {
					return w.do(fmt.Sprintf("job-%d-%d-%d-%d", i, load.clients, round, n), "noop:v1")
				})
				if round > 0 {
					rate[i] = append(rate[i], float64(load.jobs)/time.Since(began).Seconds())
					cpu[i] = append(cpu[i], ms(cpuTime(b, w.daemon.Process.Pid)-used)/float64(load.jobs))
				}
			}
		}
		with := fmt.Sprintf(", %d clients%s", load.clients, suffix)
		noteSpread(b, "no-op jobs"+with, rate[ours], "jobs/s")
		noteSpread(b, "no-op jobs"+with+", "+revision, rate[theirs], "jobs/s")
		noteSpread(b, "no-op jobs"+with+", ratio", ratios(rate[ours], rate[theirs]), "times")
		noteSpread(b, "CPU time of the daemon"+with, cpu[ours], "ms/job")
		noteSpread(b, "CPU time of the daemon"+with+", "+revision, cpu[theirs], "ms/job")
		noteSpread(b, "CPU time of the daemon"+with+", ratio", ratios(cpu[ours], cpu[theirs]), "times")
	}
	for i, name := range []string{"", ", " + revision} {
		note(b, "RSS of the daemon after its work"+suffix+name, resident(b, worlds[i].daemon.Process.Pid), "MiB")
	}
}

func ratios(a, b []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return r
}

// noteSpread records the median of several values and their range.
func noteSpread(b *testing.B, what string, values []float64, unit string) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: median(values), low: slices.Min(values), high: slices.Max(values)})
}

// buildRevision builds the daemon and shim of a revision of this repository, and returns
// their directory.
func buildRevision(b *testing.B, revision string) string {
	b.Helper()
	dir := b.TempDir()
	sources, out := filepath.Join(dir, "sources"), filepath.Join(dir, "bin")
	must(b, os.MkdirAll(sources, 0o755))
	shell := func(in, script string, args ...string) {
		b.Helper()
		ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", append([]string{"-ec", script, "sh"}, args...)...)
		cmd.Dir, cmd.Env = in, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v\n%s", strings.TrimSpace(script), err, text)
		}
	}
	root, err := filepath.Abs("../..")
	must(b, err)
	shell(root, `git rev-parse --verify --quiet "$1^{commit}" >/dev/null || { echo "there is no revision $1"; exit 1; }
		git archive "$1" | tar -x -C "$2"`, revision, sources)
	shell(sources, `go build -trimpath -ldflags "-s -w" -o "$1/" ./cmd/shepherdd ./cmd/shepherd-shim`, out)
	return out
}
