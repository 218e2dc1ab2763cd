package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds to run; 0 is as many as CI has time for")
	first = flag.Uint64("first", 1, "the first of them")
	one   = flag.Int64("seed", -1, "the one seed to run, with a journal of all that happens")
)

// The seeds of CI.
const (
	defaultSeeds = 3000
	racySeeds    = 30
)

// report is the result of a seed.
type report struct {
	Seed  uint64
	Err   string
	Steps int
	Sum   string // of the journal
	Did   map[string]int
	Virt  time.Duration
	Lines []string // the journal, of a seed that failed or whose journal is wanted
}

// play runs one seed's world in a bubble.
func play(t *testing.T, seed uint64, dir string, journal bool) report {
	r := report{Seed: seed}
	synctest.Test(t, func(*testing.T) {
		began := time.Now()
		w, err := newWorld(seed, dir)
		if err == nil {
			err = w.live()
			r.Steps, r.Sum, r.Did = w.steps, fmt.Sprintf("%016x", w.log.sum), w.did
		}
		if err != nil {
			r.Err = err.Error()
		}
		if w != nil && (journal || err != nil) {
			r.Lines = w.log.lines
		}
		r.Virt = time.Since(began)
	})
	return r
}

// shardEnv tells a process of this test which seeds are its own: the first, how
// many, the distance of one from the next, and whether their journals are wanted.
const shardEnv = "SIM_SHARD"

// TestShard runs the seeds of one process of runSeeds. It writes two lines to its
// file 3 for each: the seed, when it begins with it, and its report.
func TestShard(t *testing.T) {
	asked := os.Getenv(shardEnv)
	if asked == "" {
		t.SkipNow() // TestSeeds starts it
	}
	var from, n, step uint64
	var journal bool
	if _, err := fmt.Sscanf(asked, "%d %d %d %t", &from, &n, &step, &journal); err != nil {
		t.Fatal(err)
	}
	out := os.NewFile(3, "reports")
	base := tempDir(t)
	for i := range n {
		seed := from + i*step
		fmt.Fprintln(out, seed)
		dir := filepath.Join(base, fmt.Sprint(seed))
		check(t, os.Mkdir(dir, 0o755))
		goruntime.GC() // between seeds: a collection during a world would change the order of its goroutines
		r := play(t, seed, dir, journal)
		check(t, os.RemoveAll(dir))
		check(t, json.NewEncoder(out).Encode(r))
		if r.Err != "" {
			return
		}
	}
}

// seedTime is how long a seed may take in real time. A seed that hangs prints its stacks.
const seedTime = 5 * time.Minute

// runSeeds runs seeds in as many processes as there are processors, until one
// fails. A process has one processor and its goroutines are not preempted, so that
// they run in the same order each time.
func runSeeds(t *testing.T, from uint64, n int, journal bool) *tally {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	all := &tally{did: make(map[string]int), sums: make(map[uint64]string)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shards := min(goruntime.GOMAXPROCS(0), n)
	var running sync.WaitGroup
	for shard := range shards {
		read, write, err := os.Pipe()
		check(t, err)
		cmd := exec.CommandContext(ctx, self, "-test.run", "^TestShard$", "-test.timeout", "0")
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off",
			fmt.Sprintf("%s=%d %d %d %t", shardEnv, from+uint64(shard), (n-shard+shards-1)/shards, shards, journal))
		cmd.ExtraFiles = []*os.File{write}
		var output strings.Builder
		cmd.Stdout, cmd.Stderr = &output, &output
		check(t, cmd.Start())
		check(t, write.Close())
		running.Go(func() {
			defer read.Close()
			hung := time.AfterFunc(seedTime, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
			defer hung.Stop()
			at := all.read(read, func() { hung.Reset(seedTime) })
			if err := cmd.Wait(); err != nil && ctx.Err() == nil {
				all.add(report{Seed: at, Err: fmt.Sprintf("its process ends: %v\n%s", err, output.String())})
			}
			if all.failed() {
				cancel()
			}
		})
	}
	running.Wait()
	return all
}

// oneTries is how often one seed is run until it fails: not every seed repeats.
const oneTries = 5

// TestSeeds runs the seeds of CI, or those that flags name.
func TestSeeds(t *testing.T) {
	from, n := *first, defaultSeeds
	if raceEnabled {
		n = racySeeds
	}
	if *seeds > 0 {
		n = *seeds
	}
	if *one >= 0 {
		from, n = uint64(*one), 1
	}
	began := time.Now()
	all := runSeeds(t, from, n, *one >= 0)
	for tries := 1; *one >= 0 && all.wrong == nil && tries < oneTries; tries++ {
		all = runSeeds(t, from, n, true)
	}
	if r := all.wrong; r != nil {
		t.Errorf("seed %d: %s\n\n%s\n\nTo repeat it: make sim SEED=%d", r.Seed, r.Err, strings.Join(r.Lines, "\n"), r.Seed)
	} else if *one >= 0 {
		t.Logf("journal %s:\n%s", all.sums[from], strings.Join(all.lines, "\n"))
	}
	t.Logf("%d seeds, %d steps, %s of virtual time in %s; faults: %v", all.seeds, all.steps, all.virt.Round(time.Minute), time.Since(began).Round(time.Second), all.did)
}

// TestRepeats runs seeds twice and compares their journals, which have every call,
// every fault, every line of a daemon's log and the time of each.
func TestRepeats(t *testing.T) {
	const n = 120
	if raceEnabled {
		t.Skip("the race detector has the scheduler choose at random; make test runs this without it, too")
	}
	once, twice := runSeeds(t, 1, n, false), runSeeds(t, 1, n, false)
	for _, all := range []*tally{once, twice} {
		if all.wrong != nil {
			t.Fatalf("seed %d: %s", all.wrong.Seed, all.wrong.Err)
		}
	}
	var differ []uint64
	for _, seed := range slices.Sorted(maps.Keys(once.sums)) {
		if once.sums[seed] != twice.sums[seed] {
			differ = append(differ, seed)
		}
	}
	t.Logf("%d of %d seeds repeat exactly; not %v", n-len(differ), n, differ)
	if len(differ)*100 > n*repeatShare {
		t.Errorf("more than %d of a hundred seeds do not repeat", repeatShare)
	}
}

// repeatShare is how many of a hundred seeds may have another journal when they
// are repeated: more of them do on a busy machine.
const repeatShare = 25

// tally is the result of all seeds.
type tally struct {
	mu           sync.Mutex
	seeds, steps int
	virt         time.Duration
	did          map[string]int
	sums         map[uint64]string
	lines        []string
	wrong        *report // the first that failed
}

// read reads a shard's reports until it ends, and calls each for each line. It
// returns the seed that the shard was at.
func (a *tally) read(from io.Reader, each func()) (at uint64) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return at
		}
		each()
		if seed, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64); err == nil {
			at = seed
			continue
		}
		var r report
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			r = report{Seed: at, Err: fmt.Sprintf("it reports %q", line)}
		}
		a.add(r)
	}
}

func (a *tally) add(r report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeds++
	a.steps += r.Steps
	a.virt += r.Virt
	a.sums[r.Seed] = r.Sum
	if r.Lines != nil {
		a.lines = r.Lines
	}
	if r.Err != "" && a.wrong == nil {
		a.wrong = &r
	}
	for kind, times := range r.Did {
		a.did[kind] += times
	}
}

func (a *tally) failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wrong != nil
}
