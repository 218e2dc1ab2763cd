package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/ledger/lifecycle"
	"github.com/iterait/shepherd/storage/s3"
)

var (
	chaosFor  = flag.Duration("chaos", 25*time.Second, "how long TestChaos makes faults with each storage")
	chaosSeed = flag.Uint64("chaos-seed", 0, "what TestChaos draws its faults from; 0 is another each time")
)

// The sizes of the file systems that faults fill.
const (
	dataSize  = 48 << 20
	stateSize = 256 << 20
)

const (
	chaosClients = 3
	chaosOpen    = 12 // jobs of one client that may be under way
)

// TestChaos: clients submit, cancel and rerun jobs of bare and container sheep while
// processes are killed and stopped, storage, registry and disks fail, and the daemon is
// reloaded and replaced by another build. After the faults every guarantee is checked. `make chaos` runs it for longer.
func TestChaos(t *testing.T) {
	for _, storage := range []string{"embedded", "minio"} {
		t.Run(storage, func(t *testing.T) {
			c := newChaos(t, storage)
			c.launch()
			c.serves()
			began := time.Now()
			c.faultsFor(*chaosFor)
			lasted := time.Since(began)
			settled := c.settle()
			c.findLeftovers()
			t.Logf("%s of faults, with the storage %s:\n%s", lasted.Round(time.Second), storage, c.table(settled))
			for what, n := range c.broken() {
				if n > 0 {
					t.Errorf("%s: %d", what, n)
				}
			}
		})
	}
}

// chaos is a machine, its clients and the faults that are injected.
type chaos struct {
	*containerWorld
	minio *testenv.MinIO   // nil with the embedded storage
	proxy *testenv.S3Proxy // before MinIO
	other string           // the programs of another build

	containerdAway bool
	ending         chan struct{} // the exited of the daemon that was killed or stopped last
	reloading      sync.WaitGroup
	reloaded       atomic.Int64 // how often the daemon said that it had

	dice    *rand.Rand
	counts  map[string]int // faults by kind
	undo    []pendingUndo
	clients []*chaosClient
	report  chaosReport
}

// pendingUndo ends a fault.
type pendingUndo struct {
	due time.Time
	do  func()
}

// chaosReport counts violations.
type chaosReport struct {
	jobs, runs, cancelled                   int
	lost, doubled, wrong, disagree, refused int
	leftovers                               []string
	recovery                                time.Duration // the longest from the start of a daemon until it serves
	mu                                      sync.Mutex
}

func newChaos(t *testing.T, storage string) *chaos {
	t.Helper()
	c := &chaos{containerWorld: newContainerWorld(t), counts: make(map[string]int)}
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	c.dice = rand.New(rand.NewPCG(seed, 1))
	c.other = t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=1.2.3", "-o", c.other+"/", "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for name, size := range map[string]int{"data": dataSize, "state": stateSize} {
		c.mount(name, size)
	}
	port := testenv.FreePort(t)
	c.api = fmt.Sprintf("http://127.0.0.1:%d", port)
	c.edit("  port: 0\n", fmt.Sprintf("  port: %d\n", port))
	c.edit("storage:\n", `drain_timeout: 3s
min_free: 4MiB
limits: {retries: 100, retry_pause: 1ms}
scheduling: {max_attempts: 1000, max_turn: 5s}
models: {limits: [{model: "echo:v2", retry_pause: 2ms}]}
storage:
`)
	c.edit("sheep:\n  dock:", "sheep:\n"+sheepYAML(t, "second", c.dir)+"  dock:")
	if storage == "minio" {
		c.minio = testenv.StartMinIO(t)
		c.proxy = testenv.StartS3Proxy(t, c.minio.URL)
		c.edit(fmt.Sprintf("  listen: 127.0.0.1:0\n  access_key: %s\n  secret_key: %s\n", accessKey, secretKey),
			fmt.Sprintf("  url: %s\n  access_key: %s\n  secret_key: %s\n", c.proxy.URL, c.minio.AccessKey, c.minio.SecretKey))
	} else {
		c.edit("  listen: 127.0.0.1:0\n", fmt.Sprintf("  listen: 127.0.0.1:%d\n  min_free: 4MiB\n", testenv.FreePort(t)))
	}
	return c
}

// mount mounts a small file system on a directory.
func (c *chaos) mount(name string, size int) {
	c.t.Helper()
	dir := filepath.Join(c.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		c.t.Fatalf("mount a small disk: %v", err)
	}
	c.t.Cleanup(func() {
		c.heal()
		c.end()
		c.daemon = nil
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			c.t.Errorf("unmount %s: %v", name, err)
		}
	})
}

// faultsFor injects faults, several at a time, while clients work.
func (c *chaos) faultsFor(long time.Duration) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	var working sync.WaitGroup
	for n := range chaosClients {
		client := &chaosClient{chaos: c, name: fmt.Sprintf("c%d", n), dice: rand.New(rand.NewPCG(c.dice.Uint64(), 2))}
		c.clients = append(c.clients, client)
		working.Go(func() { client.work(ctx) })
	}
	defer working.Wait()
	defer c.heal() // a client waits for a stopped daemon
	defer cancel()
	kinds := c.faults()
	for end := time.Now().Add(long); time.Now().Before(end); {
		time.Sleep(c.between(0, 600))
		c.undoDue(time.Now())
		if c.dead() {
			c.replace()
			continue
		}
		kind := kinds[c.dice.IntN(len(kinds))]
		undo, done := kind.make()
		if !done {
			continue // there was nothing to break
		}
		c.counts[kind.name]++
		if undo != nil {
			c.undo = append(c.undo, pendingUndo{time.Now().Add(c.between(50, 1500)), undo})
		}
	}
}

// between draws a time, in milliseconds.
func (c *chaos) between(from, to int) time.Duration {
	return time.Duration(from+c.dice.IntN(to-from)) * time.Millisecond
}

func (c *chaos) undoDue(now time.Time) {
	c.undo = slices.DeleteFunc(c.undo, func(u pendingUndo) bool {
		due := !u.due.After(now)
		if due {
			u.do()
		}
		return due
	})
}

// heal ends all faults.
func (c *chaos) heal() {
	for _, u := range c.undo {
		u.do()
	}
	c.undo = nil
}

// replace starts the daemon, or another build's, and mostly waits until it serves.
func (c *chaos) replace() {
	c.t.Helper()
	c.bin = programs
	if c.dice.IntN(2) == 0 {
		c.bin = c.other
	}
	c.launch()
	if c.dice.IntN(4) > 0 {
		c.serves()
	}
}

// serves waits until the daemon serves or has ended.
func (c *chaos) serves() {
	c.t.Helper()
	began := time.Now()
	for !c.dead() {
		text := c.log.String()
		if strings.Contains(text, "Shepherd API is available at ") {
			if _, at, found := strings.Cut(text, "Embedded storage is available at "); found {
				c.s3 = strings.Fields(at)[0]
			}
			c.report.recovery = max(c.report.recovery, time.Since(began))
			return
		}
		if time.Since(began) > deadline {
			c.t.Fatalf("the daemon does not serve:\n%s", text)
		}
		c.undoDue(time.Now())
		time.Sleep(5 * time.Millisecond)
	}
}

// settle ends the faults, waits until every guarantee holds, and returns how long that
// took.
func (c *chaos) settle() time.Duration {
	c.t.Helper()
	began := time.Now()
	c.heal()
	c.reloading.Wait()
	if c.ending == c.exited {
		c.awaitExit()
	}
	for c.serves(); c.dead(); c.serves() {
		if time.Since(began) > deadline {
			c.t.Fatalf("the daemon does not start:\n%s", c.log)
		}
		c.launch()
	}
	endpoint, key, secret := c.storage()
	store, err := s3.New(s3.Config{URL: endpoint, AccessKey: key, SecretKey: secret})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*deadline)
	defer cancel()
	for _, client := range c.clients {
		client.finish(ctx)
	}
	settled := time.Since(began)
	executions := make(map[string]int)
	for _, line := range c.noted("job") {
		executions[strings.Fields(line)[1]]++
	}
	for _, client := range c.clients {
		for _, j := range client.jobs {
			c.judge(ctx, store, j, executions[j.id])
		}
	}
	return settled
}

// judge compares how a job has ended with what its client knows.
func (c *chaos) judge(ctx context.Context, store *s3.Store, j *chaosJob, executions int) {
	c.t.Helper()
	c.report.jobs++
	code, text := c.request("GET", "/jobs/"+j.id, "")
	var detail struct {
		Status   string
		Finished *string `json:"finished_at"`
		Run      int
		Attempts []struct {
			Run   int
			Cause string
		}
	}
	if code != 200 || json.Unmarshal([]byte(text), &detail) != nil {
		c.report.lost++
		c.t.Errorf("job %s is not known: %d %s", j.id, code, text)
		return
	}
	c.report.runs += detail.Run
	switch {
	case detail.Status == "cancelled" && j.cancelAsked:
		c.report.cancelled++
	case detail.Status != "done" || j.cancelAnswered:
		c.report.lost++
		c.t.Errorf("job %s is %s, its client knows %s: %s", j.id, detail.Status, j, text)
	default:
		if code, got := c.request("GET", "/jobs/"+j.id+"/result/"+j.output, ""); code != 200 || got != j.text {
			c.report.wrong++
			c.t.Errorf("job %s gave %d %.100q, want %.100q", j.id, code, got, j.text)
		}
	}
	ends := make(map[int]int)
	for _, a := range detail.Attempts {
		if a.Cause == "done" || a.Cause == "cancelled" {
			ends[a.Run]++
		}
	}
	all := detail.Run <= lifecycle.KeepRuns // else the attempts of the first runs are gone
	if all && executions > len(detail.Attempts) || slices.ContainsFunc(slices.Collect(maps.Values(ends)), func(n int) bool { return n > 1 }) {
		c.report.doubled++
		c.t.Errorf("job %s was given to runners %d times, and its attempts are %+v", j.id, executions, detail.Attempts)
	}
	if kept, err := keptStatus(ctx, store, j.id, detail.Status, detail.Finished); err != nil {
		c.report.disagree++
		c.t.Errorf("job %s: storage says %+v (%v), the API %s", j.id, kept, err, text)
	}
}

// storage returns the clients' access to the storage, without the proxy.
func (c *chaos) storage() (url, key, secret string) {
	if c.minio != nil {
		return c.minio.URL, c.minio.AccessKey, c.minio.SecretKey
	}
	return c.s3, accessKey, secretKey
}

// findLeftovers stops the daemon and looks for what it has left behind.
func (c *chaos) findLeftovers() {
	c.t.Helper()
	left := func(format string, args ...any) {
		c.report.leftovers = append(c.report.leftovers, fmt.Sprintf(format, args...))
	}
	uploads := c.uploads()
	c.stop()
	for _, command := range c.processes() {
		left("process %s", command)
	}
	for _, pattern := range []string{"data/[^.]*/attempt-*", "data/.staging/*"} {
		found, err := filepath.Glob(filepath.Join(c.dir, pattern))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, path := range found {
			left("directory %s", path)
		}
	}
	for _, what := range c.containerd.Leftovers(c.t, "shepherd") {
		left("%s", what)
	}
	for _, key := range uploads {
		left("upload of %s", key)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, c.dir+"/data/") || strings.HasPrefix(at, c.dir+"/state/") {
			left("mount %s", at)
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/dock-") {
			left("cgroup %s", path)
		}
		return nil // removed meanwhile
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, what := range c.report.leftovers {
		c.t.Errorf("left: %s", what)
	}
}

// uploads are the multipart uploads that were not completed or aborted.
func (c *chaos) uploads() []string {
	c.t.Helper()
	endpoint, key, secret := c.storage()
	client, err := minio.New(strings.TrimPrefix(endpoint, "http://"), &minio.Options{Creds: credentials.NewStaticV4(key, secret, "")})
	if err != nil {
		c.t.Fatal(err)
	}
	buckets, err := client.ListBuckets(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	var found []string
	for _, bucket := range buckets {
		for upload := range client.ListIncompleteUploads(c.t.Context(), bucket.Name, "", true) {
			if upload.Err != nil {
				c.t.Fatal(upload.Err)
			}
			found = append(found, bucket.Name+"/"+upload.Key)
		}
	}
	return found
}

// broken returns the figures that must be 0.
func (c *chaos) broken() map[string]int {
	r := &c.report
	return map[string]int{
		"jobs lost": r.lost, "ended twice or run without an attempt": r.doubled, "wrong bytes": r.wrong,
		"status in storage other than the API's": r.disagree, "requests refused without a reason": r.refused, "left over": len(r.leftovers),
	}
}

// table returns the result in the form of docs/guarantees.md.
func (c *chaos) table(settled time.Duration) string {
	var b strings.Builder
	row := func(what string, n any) { fmt.Fprintf(&b, "| %s | %v |\n", what, n) }
	b.WriteString("| what | count |\n| --- | --- |\n")
	for _, kind := range slices.Sorted(maps.Keys(c.counts)) {
		row(kind, c.counts[kind])
	}
	row("reloads that were carried out", c.reloaded.Load())
	row("**jobs**", c.report.jobs)
	row("runs of them", c.report.runs)
	row("cancelled", c.report.cancelled)
	broken := c.broken()
	for _, what := range slices.Sorted(maps.Keys(broken)) {
		row("**"+what+"**", broken[what])
	}
	row("longest start of a daemon", c.report.recovery.Round(10*time.Millisecond))
	row("from the last fault until all jobs had ended", settled.Round(10*time.Millisecond))
	return b.String()
}

// chaosClient is a client that submits jobs during the faults.
type chaosClient struct {
	*chaos
	name string
	dice *rand.Rand
	jobs []*chaosJob
}

// chaosJob is a client's knowledge of a job.
type chaosJob struct {
	id, model    string
	sheep        string // that it is addressed to
	body         string // of its last submission
	output, text string // the expected output file and its content

	pending                     bool // the submission is not answered yet
	final                       bool
	cancelAsked, cancelAnswered bool
	submissions, cancels        int
	reruns                      int
}

// maxReruns keeps the runs of a job, of which a lost answer may make two, below those
// whose attempts the ledger keeps.
const maxReruns = lifecycle.KeepRuns / 2

func (j *chaosJob) String() string {
	return fmt.Sprintf("pending %t, final %t, cancel asked for %t, answered %t, %d submissions and %d cancels", j.pending, j.final, j.cancelAsked, j.cancelAnswered, j.submissions, j.cancels)
}

// work submits, cancels, reruns and reads jobs until ctx ends.
func (c *chaosClient) work(ctx context.Context) {
	for ctx.Err() == nil {
		open := 0
		for _, j := range c.jobs {
			if !j.final {
				open++
			}
		}
		var some *chaosJob
		if len(c.jobs) > 0 {
			some = c.jobs[max(0, len(c.jobs)-1-c.dice.IntN(2*chaosOpen))]
		}
		switch n := c.dice.IntN(10); {
		case some == nil || n < 6 && open < chaosOpen:
			some = c.newJob()
			c.submit(ctx, some)
		case n == 6 && !some.final && !some.pending && !some.cancelAsked:
			some.cancelAsked = true
			c.cancel(ctx, some)
		case n == 7 && some.final && !some.cancelAsked && some.reruns < maxReruns:
			some.reruns++
			some.final, some.pending, some.submissions = false, true, 0
			some.body = jobBody(some.id, some.model, "", "sheep_id", some.sheep) // again, with the inputs that it has
			c.submit(ctx, some)
		default:
			c.look(some)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(c.dice.IntN(120)) * time.Millisecond):
		}
	}
}

// newJob makes a job for a bare sheep or for the container.
func (c *chaosClient) newJob() *chaosJob {
	id := fmt.Sprintf("%s-job-%d", c.name, len(c.jobs))
	text := strings.TrimSpace(strings.Repeat(id+" ", 1<<c.dice.IntN(15))) // up to some 300 KB
	j := &chaosJob{id: id, model: fmt.Sprintf("echo:v%d", 1+c.dice.IntN(2)), pending: true}
	payload := ""
	if c.dice.IntN(3) == 0 {
		j.sheep, j.output, j.text = "dock", "kept", text
		payload = fmt.Sprintf("sleep %dms\nkeep %s", c.dice.IntN(200), text)
	} else {
		j.sheep, j.output, j.text = []string{"bare_sheep", "second"}[c.dice.IntN(2)], "output", fmt.Sprintf("nap 0.%02d %s", c.dice.IntN(20), text)
		payload = j.text
	}
	j.body = jobBody(id, j.model, payload, "sheep_id", j.sheep)
	c.jobs = append(c.jobs, j)
	return j
}

// submit repeats its request until it is answered, or ctx ends.
func (c *chaosClient) submit(ctx context.Context, j *chaosJob) {
	for ctx.Err() == nil && j.pending {
		j.submissions++
		code, text, err := c.try("POST", "/start-job", j.body)
		switch {
		case err == nil && (code == http.StatusOK || code == http.StatusConflict && j.submissions > 1): // an earlier try was taken
			j.pending = false
		case err != nil, code == http.StatusServiceUnavailable, code == http.StatusInsufficientStorage:
			c.pause(ctx)
		default:
			c.refuse("start-job %s: %d %s", j.id, code, text)
			j.pending = false
		}
	}
}

func (c *chaosClient) cancel(ctx context.Context, j *chaosJob) {
	for ctx.Err() == nil && !j.cancelAnswered {
		j.cancels++
		code, text, err := c.try("POST", "/jobs/"+j.id+"/cancel", "")
		switch {
		case err == nil && code == http.StatusOK:
			j.cancelAnswered = true
		case err == nil && code == http.StatusConflict: // it had ended, or an earlier cancel was carried out
			return
		case err != nil, code == http.StatusServiceUnavailable, code == http.StatusInsufficientStorage:
			c.pause(ctx)
		default:
			c.refuse("cancel %s: %d %s", j.id, code, text)
			return
		}
	}
}

// look asks whether a job has ended.
func (c *chaosClient) look(j *chaosJob) {
	code, text, err := c.try("GET", "/jobs/"+j.id+"/status", "")
	if j.pending || err != nil || code == http.StatusServiceUnavailable {
		return
	}
	var s status
	if err := json.Unmarshal([]byte(text), &s); code != http.StatusOK || err != nil {
		c.refuse("status of %s: %d %s", j.id, code, text)
		return
	}
	j.final = s.Status == "done" || s.Status == "failed" || s.Status == "cancelled"
}

// finish completes open requests.
func (c *chaosClient) finish(ctx context.Context) {
	for _, j := range c.jobs {
		c.submit(ctx, j)
		if j.cancelAsked && !j.cancelAnswered {
			c.cancel(ctx, j)
		}
	}
	for _, j := range c.jobs {
		for j.final = false; !j.final && ctx.Err() == nil; {
			c.look(j)
			if !j.final {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}

func (c *chaosClient) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(20+c.dice.IntN(80)) * time.Millisecond):
	}
}

// refuse records an answer that no client should get.
func (c *chaosClient) refuse(format string, args ...any) {
	c.report.mu.Lock()
	c.report.refused++
	c.report.mu.Unlock()
	c.t.Errorf(format, args...)
}
