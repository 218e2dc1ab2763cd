package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/memory"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/shepherd"
	storage "github.com/iterait/shepherd/storage/memory"
)

// The bounds of a world. The oracle derives its time limits from them.
const (
	maxRun      = 20 * time.Second
	maxLoad     = 10 * time.Second
	maxTurn     = time.Minute
	maxLoadTime = 2 * time.Minute // load_timeout of jobs without one
	maxAttempts = 3
	maxRetries  = 3
	lateAnswer  = 12 * time.Second          // longer than a daemon waits for it
	maxSkew     = 30 * time.Minute          // of a clock
	statusDelay = 233333 * time.Microsecond // no other wait of a core is as long
)

// world is the nodes of one seed on one ledger and one storage, their clients and their
// faults.
type world struct {
	dice  dice
	bus   *bus
	dir   string
	log   *journal
	rates rates

	ledger ledger.Ledger
	store  *storage.Store
	skew   atomic.Int64 // of the ledger's clock, as a time.Duration
	nodes  []*node
	oracle *oracle
	faulty bool // faults still happen
	// peaceful says that there are no faults, but many jobs of few models, to check the
	// guarantees about their order.
	peaceful bool
	steps    int
	did      map[string]int // faults by kind

	clients []*client
	work    sync.WaitGroup // goroutines of the scheduler, which it waits for at the end

	mu     sync.Mutex
	orders []func()
}

// later makes the scheduler call f. Only the scheduler changes the world.
func (w *world) later(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orders = append(w.orders, f)
}

// obey calls the functions that were passed to later.
func (w *world) obey() {
	w.mu.Lock()
	orders := w.orders
	w.orders = nil
	w.mu.Unlock()
	for _, f := range orders {
		f()
	}
}

// rates are how often each kind of fault occurs in a world: once in so many steps or calls; 0 is
// never.
type rates struct {
	slow, fail, lie, full, odd, twice    int // of calls
	crash, pause, partition, leave, disk int // of steps
	clock, reload, stop, device, kill    int
}

// newRates draws which kinds of faults a world has: some, but not all.
func newRates(d dice) rates {
	some := func(often int) int {
		if d.chance(2) {
			return 0
		}
		return often + d.IntN(4*often)
	}
	return rates{
		slow: some(10), fail: some(12), lie: some(15), full: some(25), odd: some(8), twice: some(2),
		crash: some(80), pause: some(100), partition: some(100), leave: some(120), disk: some(100),
		clock: some(100), reload: some(100), stop: some(150), device: some(60), kill: some(60),
	}
}

// node is one machine: what survives its daemons.
type node struct {
	*world
	name    string
	sheep   []string
	devices map[string]*device
	runners *fake.Runners
	deaf    map[string]*atomic.Bool // whether a sheep's runner takes no job
	lives   atomic.Int32            // number of incarnations
	now     *incarnation
	until   time.Time           // it is paused, or down, until then
	cut     map[target]cutPart  // which parts it cannot reach
	broken  bool                // its disk
	leaving map[string]struct{} // sheep that are not configured at present
	skew    atomic.Int64        // of the machine's clock, as a time.Duration
}

// clock returns the time of the machine's clock.
func (n *node) clock() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) }

type cutPart struct {
	until time.Time
	hangs bool // calls wait, in place of failing
}

// incarnation is one life of a node's daemon.
type incarnation struct {
	*world
	node    *node
	dir     string // where its data root lies
	core    *shepherd.Shepherd
	members []shepherd.Member
	sheep   []*busSheep
	crashed chan struct{}
	ready   bool // Start has returned
	gone    bool // it stops, or has stopped
	busy    bool // its sheep are being changed
	stops   bool // it is being stopped
	ends    sync.WaitGroup
}

func (i *incarnation) dead() bool {
	select {
	case <-i.crashed:
		return true
	default:
		return false
	}
}

// plan is the input of a job. It tells the runner how long each execution takes, and how it
// ends.
type plan struct {
	Name string        `json:"name"`
	Run  time.Duration `json:"run"`
	Ends []string      `json:"ends"` // of the executions, in order; the last is repeated
}

// The ends of an execution.
const (
	endsDone        = "done"
	endsError       = "error"
	endsDead        = "dies"
	endsAfterAnswer = "last" // the runner answers, and then exits
	endsLost        = "lost" // its supervisor is lost
	endsNever       = "hangs"
	// It answers that the job is done, but has written a file that cannot be an output.
	endsOutputs = "outputs"
)

func newWorld(seed uint64, dir string) (*world, error) {
	w := &world{
		dice: newDice(seed), bus: newBus(), dir: dir, log: &journal{began: time.Now()}, store: new(storage.Store),
		faulty: true, did: make(map[string]int),
	}
	w.rates = newRates(w.dice)
	if seed%peacefulSeeds == 1 {
		w.peaceful, w.faulty, w.rates = true, false, rates{}
	}
	if err := w.openLedger(seed); err != nil {
		return nil, err
	}
	w.oracle = newOracle(w)
	nodes, sheep := 1+max(0, w.dice.IntN(7)-2), 3
	if w.peaceful {
		nodes, sheep = 1, 2
	}
	for n := range nodes {
		node := &node{
			world: w, name: fmt.Sprintf("n%d", n), devices: make(map[string]*device), runners: fake.NewRunners(), deaf: make(map[string]*atomic.Bool),
			cut: make(map[target]cutPart), leaving: make(map[string]struct{}),
		}
		for s := range 1 + w.dice.IntN(sheep) {
			name := fmt.Sprintf("%s-%c", node.name, 'a'+s)
			node.sheep = append(node.sheep, name)
			node.deaf[name] = new(atomic.Bool)
			if w.dice.chance(3) && !w.peaceful {
				node.devices[name] = newDevice()
			}
		}
		if err := os.MkdirAll(node.root(), 0o755); err != nil {
			return nil, err
		}
		w.nodes = append(w.nodes, node)
	}
	return w, nil
}

// peacefulSeeds is the share of seeds whose world is peaceful, one in so many.
const peacefulSeeds = 8

// sqliteSeeds is the share of seeds with the SQLite ledger, one in so many; the others have the
// ledger in memory, which is faster.
const sqliteSeeds = 4

func (w *world) openLedger(seed uint64) (err error) {
	now := func() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) }
	if seed%sqliteSeeds != 0 {
		w.ledger = memory.New(memory.Config{Now: now})
		return nil
	}
	w.ledger, err = sqlite.Open(context.Background(), sqlite.Config{Path: filepath.Join(w.dir, "ledger.db"), Now: now})
	return err
}

// note writes a fault or the action of a client to the journal.
func (w *world) note(format string, args ...any) { w.log.add(format, args...) }

func (w *world) fault(kind, format string, args ...any) {
	w.did[kind]++
	w.note(format, args...)
}

// root is the directory of the node's files during its present incarnation. Each incarnation has
// a path of its own, so that a crashed one can change nothing any more.
func (n *node) root() string {
	return filepath.Join(n.dir, fmt.Sprintf("%s.%d", n.name, n.lives.Load()))
}

// here converts a path of an earlier incarnation to the present one.
func (n *node) here(path string) string {
	rest := strings.TrimPrefix(path, filepath.Join(n.dir, n.name+"."))
	_, below, _ := strings.Cut(rest, "/")
	return filepath.Join(n.root(), below)
}

// boot starts the node's next incarnation.
func (n *node) boot() {
	i := &incarnation{world: n.world, node: n, dir: n.root(), crashed: make(chan struct{})}
	n.now, n.until = i, time.Time{}
	n.note("%s boots", n.name)
	for _, name := range n.sheep {
		if _, away := n.leaving[name]; !away {
			i.members = append(i.members, i.member(name))
		}
	}
	loadTimeout := maxLoadTime
	core, err := shepherd.New(shepherd.Config{
		Node: n.name, DataRoot: filepath.Join(i.dir, "data"), Ledger: busLedger{n.ledger, i}, Store: busStore{n.store, i},
		Sheep: i.members, StageAhead: 1, MaxAttempts: maxAttempts, MaxTurn: maxTurn, StatusDelay: statusDelay,
		Now: n.clock, Limits: shepherd.LimitDefaults{All: job.Limits{LoadTimeout: &loadTimeout}},
		Log: slog.New(slog.NewTextHandler(journalWriter{i}, &slog.HandlerOptions{ReplaceAttr: withoutTime})),
	})
	if err != nil {
		panic(err)
	}
	i.core = core
	i.ends.Go(func() {
		err := core.Start(context.Background())
		n.later(func() {
			switch {
			case i.gone:
			case err != nil:
				n.note("%s does not start: %v", n.name, err)
				i.gone = true
			default:
				n.note("%s is up", n.name)
				i.ready = true
			}
		})
	})
}

func (i *incarnation) member(name string) shepherd.Member {
	n := i.node
	deaf := n.deaf[name]
	driver := fake.New(fake.Config{
		Runners: n.runners,
		Deaf:    func(job.Model) bool { return deaf.Load() },
		Load:    func(ctx context.Context, m job.Model) error { return rest(ctx, loadTime(m)) },
		Handle: func(ctx context.Context, m job.Model, in messenger.Input) error {
			return n.execute(ctx, name, m, in)
		},
		Stubborn: func(m job.Model) bool { return m.Name == "m1" },
		Cancels:  name[len(name)-1] == 'a', // one sheep of each node has runners that support cancelling
	})
	inner, err := driver.NewSheep(name, func(any) error { return nil })
	if err != nil {
		panic(err)
	}
	s := &busSheep{Sheep: inner, by: i, name: name, runners: n.runners, deaf: deaf}
	i.sheep = append(i.sheep, s)
	m := shepherd.Member{Name: name, Type: "fake", Sheep: s}
	if d := n.devices[name]; d != nil {
		m.Devices = d
	}
	return m
}

// loadTime returns how long loading a model takes.
func loadTime(m job.Model) time.Duration {
	var n time.Duration
	for _, c := range m.Name {
		n = n*31 + time.Duration(c)
	}
	return n % 10 * maxLoad / 10
}

// execute runs a job.
func (n *node) execute(ctx context.Context, sheep string, m job.Model, in messenger.Input) error {
	in.IODataRoot = n.here(in.IODataRoot)
	data, err := fake.ReadInput(in, job.DefaultInput)
	e := n.oracle.executes(n, sheep, m, in, data, err)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	ending := p.Ends[min(e.number-1, len(p.Ends)-1)]
	n.note("%s has %s (execution %d: %s)", sheep, in.JobID, e.serial, ending)
	end := func(err error) error {
		n.oracle.executed(e, ending, err)
		return err
	}
	if ending == endsNever {
		<-ctx.Done()
		err := end(ctx.Err())
		if e.serial%2 == 0 {
			time.Sleep(lateAnswer) // a runner that was asked to cancel the job answers late
		}
		return err
	}
	if err := rest(ctx, p.Run); err != nil {
		return end(err)
	}
	in.IODataRoot = n.here(in.IODataRoot) // another daemon may be running by now
	switch ending {
	case endsDead:
		return end(&runtime.Exit{Code: 1})
	case endsLost:
		return end(&runtime.Exit{Code: -1, Lost: true})
	case endsError:
		return end(&job.Failure{Message: "no", Type: "Injected"})
	}
	names := []string{job.DefaultOutput, fmt.Sprintf("of-%d", e.serial)}
	if ending == endsOutputs {
		names = append(names, "no-name-\xff") // which storage refuses
	}
	for _, name := range names {
		if err := fake.WriteOutput(in, name, fmt.Append(nil, e.serial)); err != nil {
			return end(err)
		}
	}
	if ending == endsAfterAnswer {
		e.answered = true
		_ = end(nil)
		return &fake.Last{Exit: runtime.Exit{Code: 0}}
	}
	return end(nil)
}

// crash kills the node's daemon like SIGKILL and, if machine is set, its runners.
func (n *node) crash(machine bool) {
	i := n.now
	n.fault("crash", "%s crashes, machine %v", n.name, machine)
	i.gone = true
	close(i.crashed)
	if machine {
		for _, name := range n.sheep {
			n.runners.Kill(name, runtime.Exit{Code: -1, Signal: "SIGKILL", Lost: true})
		}
		n.runners = fake.NewRunners()
	} else {
		for _, s := range i.sheep {
			s.Sheep.Detach()
		}
	}
	n.moveOn()
	n.now = nil
	n.until = time.Now().Add(n.dice.span(20 * time.Second))
	if !i.stops {
		n.work.Go(i.awaitEnd)
	}
}

// moveOn moves the node's files to the path of its next incarnation.
func (n *node) moveOn() {
	from := n.root()
	n.lives.Add(1)
	if err := os.Rename(from, n.root()); err != nil {
		panic(err)
	}
}

// awaitEnd waits for the goroutines of a core that has crashed or did not start.
func (i *incarnation) awaitEnd() {
	i.ends.Wait()
	over, cancel := context.WithCancel(context.Background())
	cancel()
	i.core.Stop(over)
}

// retire stops the node's daemon as a service manager does.
func (n *node) retire(leave bool, patience time.Duration) {
	i := n.now
	i.gone, i.stops = true, true
	n.note("%s is told to end, leave %v, within %s", n.name, leave, patience)
	n.work.Go(func() {
		i.ends.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if leave {
			i.core.Leave(ctx)
		} else {
			i.core.Stop(ctx)
		}
		n.later(func() {
			if !i.dead() {
				n.note("%s has ended", n.name)
				n.moveOn()
				n.now = nil
				n.until = time.Now().Add(n.dice.span(5 * time.Second))
			}
		})
	})
}

// up returns the nodes whose daemon answers requests.
func (w *world) up() []*node {
	var up []*node
	for _, n := range w.nodes {
		if n.now != nil && n.now.ready && !n.now.gone {
			up = append(up, n)
		}
	}
	return up
}

// errNoEnd says that the world did not end in time.
var errNoEnd = errors.New("the world does not come to an end")

// run is the scheduler. It makes steps until done returns true.
func (w *world) run(wait func(), most int, until time.Duration, done func() bool) error {
	over := time.Now().Add(until)
	for range most {
		wait()
		w.obey()
		w.steps++
		if err := w.oracle.look(); err != nil {
			return err
		}
		if done() {
			return nil
		}
		if time.Now().After(over) {
			return fmt.Errorf("%w: %s of virtual time are over", errNoEnd, until)
		}
		w.reboot()
		if w.faulty {
			w.injectFault()
		} else {
			for _, n := range w.nodes {
				n.restore()
			}
		}
		w.act()
		wait()
		// No two steps are at one instant, because timers of the same time fire in any
		// order.
		time.Sleep(1 + time.Duration(w.dice.IntN(int(time.Millisecond))))
		wait()
		ready, next := w.ready()
		if len(ready) == 0 || w.dice.chance(4) {
			d := w.dice.span(2*time.Second) + time.Millisecond
			if !w.faulty {
				d *= 10
			}
			if len(ready) > 0 {
				d = w.dice.span(300*time.Millisecond) + time.Millisecond
			}
			if !next.IsZero() {
				d = min(d, max(time.Until(next), time.Millisecond))
			}
			w.sleep(d)
			continue
		}
		w.settle(choose(w.dice, ready))
	}
	return fmt.Errorf("%w: %d steps are over", errNoEnd, most)
}

// sleep lets time pass, until another call has parked.
func (w *world) sleep(d time.Duration) {
	select {
	case <-w.bus.arrived:
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.bus.arrived:
	case <-timer.C:
	}
}

// ready returns the calls that may be picked now, and the time of the next.
func (w *world) ready() (ready []*call, next time.Time) {
	now := time.Now()
	for _, c := range w.bus.waiting() {
		due := c.due
		if n := c.by.node; n.now == c.by {
			if n.until.After(due) {
				due = n.until
			}
			if cut := n.cut[c.to]; cut.hangs && cut.until.After(due) {
				due = cut.until
			}
		}
		if !due.After(now) {
			ready = append(ready, c)
		} else if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return ready, next
}

// odd reports whether the call has an error that is specific to it.
func (c *call) odd() bool {
	for _, does := range []string{" stage ", " collect ", " answer "} {
		if strings.Contains(c.name, does) {
			return true
		}
	}
	return strings.HasSuffix(c.name, " run") || strings.HasSuffix(c.name, " load")
}

// settle picks a call and decides its reply.
func (w *world) settle(c *call) {
	f := proceeds
	if w.faulty {
		n := c.by.node
		switch {
		case n.cut[c.to].until.After(time.Now()) && !n.cut[c.to].hangs:
			f = fails
		case c.due.IsZero() && w.dice.chance(w.rates.slow):
			c.due = time.Now().Add(w.dice.span(choose(w.dice, []time.Duration{time.Second, 10 * time.Second, 40 * time.Second})))
			w.fault("slow "+string(c.to), "%s #%d is slow", c.name, c.serial)
			return
		case w.dice.chance(w.rates.fail):
			f = fails
		case w.dice.chance(w.rates.lie):
			f = lies
		case c.to != toSheep && w.dice.chance(w.rates.full):
			f = full
		case strings.Contains(c.name, " answer ") && w.dice.chance(w.rates.twice):
			f = odd
		case c.odd() && w.dice.chance(w.rates.odd):
			f = odd
			if strings.HasSuffix(c.name, " run") && w.dice.chance(2) {
				f = deaf
			}
		}
	}
	switch f {
	case proceeds:
		w.note("%s #%d", c.name, c.serial)
	case fails:
		w.fault("fails "+string(c.to), "%s #%d fails", c.name, c.serial)
	case lies:
		w.fault("lies "+string(c.to), "%s #%d is made and says that it failed", c.name, c.serial)
	case full:
		w.fault("full "+string(c.to), "%s #%d finds no room", c.name, c.serial)
	case odd:
		w.fault("odd "+string(c.to), "%s #%d goes another way", c.name, c.serial)
	case deaf:
		w.fault("deaf", "%s #%d starts a runner that takes no job", c.name, c.serial)
	}
	w.bus.pick(c, f)
}

// reboot starts the nodes that are due to start.
func (w *world) reboot() {
	for _, n := range w.nodes {
		i := n.now
		if i != nil && i.gone && !i.ready && !i.dead() { // it did not start
			n.now = nil
			n.until = time.Now().Add(time.Second)
			n.moveOn()
			w.work.Go(i.awaitEnd)
		}
		if n.now == nil && !n.until.After(time.Now()) {
			n.boot()
		}
	}
}

// injectFault injects a fault into a node from time to time.
func (w *world) injectFault() {
	n := choose(w.dice, w.nodes)
	i := n.now
	now := time.Now()
	d, r := w.dice, w.rates
	works := i != nil && i.ready && !i.gone
	switch {
	case d.chance(r.crash) && i != nil && !i.busy:
		n.crash(d.chance(2))
	case d.chance(r.pause) && works:
		n.until = now.Add(d.span(30 * time.Second))
		w.fault("pause", "%s pauses", n.name)
	case d.chance(r.partition):
		part := choose(d, []target{toLedger, toStorage})
		n.cut[part] = cutPart{until: now.Add(d.span(time.Minute)), hangs: d.chance(2)}
		w.fault("partition", "%s does not reach %s", n.name, part)
	case d.chance(r.leave) && works && !i.busy:
		w.did["restart"]++
		n.retire(d.chance(2), d.span(30*time.Second))
	case d.chance(r.disk) && i != nil && !n.broken:
		n.breakDisk()
	case d.chance(r.clock):
		skew := d.span(2*maxSkew) - maxSkew
		if d.chance(2) {
			n.skew.Store(int64(skew))
			w.fault("clock", "the clock of %s is off by %s", n.name, skew)
		}
		if d.chance(2) {
			w.skew.Store(int64(skew))
			w.fault("clock", "the ledger's clock is off by %s", skew)
		}
	case d.chance(r.device) && len(n.devices) > 0:
		name := choose(d, slices.Sorted(maps.Keys(n.devices)))
		dev := n.devices[name]
		w.fault("device", "the GPU of %s is out: %v", name, !dev.isOut)
		dev.set(!dev.isOut)
	case d.chance(r.kill):
		name := choose(d, n.sheep)
		if n.runners.Kill(name, runtime.Exit{Code: -1, Signal: "SIGKILL", Lost: d.chance(2)}) {
			w.fault("kill", "the runner of %s is killed", name)
		}
	case d.chance(r.reload) && works && !i.busy:
		n.reload()
	case d.chance(r.stop) && works && !i.busy:
		n.stopSheep(d.span(20*time.Second), d.span(20*time.Second))
	case n.broken && d.chance(20):
		n.mendDisk()
	}
}

// breakDisk makes it impossible to prepare jobs.
func (n *node) breakDisk() {
	staging := filepath.Join(n.root(), "data", ".staging")
	if err := os.MkdirAll(filepath.Dir(staging), 0o755); err != nil {
		panic(err)
	}
	if err := os.Remove(staging); err != nil && !errors.Is(err, os.ErrNotExist) {
		return // jobs are being prepared
	}
	if err := os.WriteFile(staging, nil, 0o644); err != nil {
		panic(err)
	}
	n.broken = true
	n.fault("disk", "the disk of %s breaks", n.name)
}

func (n *node) mendDisk() {
	n.broken = false
	n.note("the disk of %s is mended", n.name)
	if err := os.Remove(filepath.Join(n.root(), "data", ".staging")); err != nil {
		panic(err)
	}
}

// reload takes a sheep out of the configuration, or puts all back.
func (n *node) reload() {
	i := n.now
	if len(n.leaving) == 0 {
		n.leaving[choose(n.dice, n.sheep)] = struct{}{}
	} else {
		clear(n.leaving)
	}
	var members []shepherd.Member
	for _, name := range n.sheep {
		if _, away := n.leaving[name]; away {
			continue
		}
		k := slices.IndexFunc(i.members, func(m shepherd.Member) bool { return m.Name == name })
		if k < 0 || n.dice.chance(3) { // new, or changed
			members = append(members, i.member(name))
		} else {
			members = append(members, i.members[k])
		}
	}
	n.fault("reload", "%s is configured again, without %v", n.name, slices.Sorted(maps.Keys(n.leaving)))
	n.apply(members, n.dice.span(20*time.Second))
}

// apply configures the node's sheep again.
func (n *node) apply(members []shepherd.Member, drain time.Duration) {
	i := n.now
	i.busy = true
	i.ends.Go(func() {
		err := i.core.Apply(context.Background(), members, drain)
		n.later(func() {
			i.busy = false
			if err == nil {
				i.members = members
				return
			}
			n.note("%s is not configured again: %v", n.name, err)
			clear(n.leaving)
		})
	})
}

// stopSheep stops a node's sheep and starts them again.
func (n *node) stopSheep(drain, pause time.Duration) {
	i := n.now
	n.fault("stop", "the sheep of %s are stopped", n.name)
	i.busy = true
	i.ends.Go(func() {
		_ = i.core.StopSheep(drain)
		time.Sleep(pause)
		_ = i.core.StartSheep()
		n.later(func() { i.busy = false })
	})
}

// heal ends all faults. After it the world must end.
func (w *world) heal() {
	w.note("faults are over")
	w.faulty = false
	w.skew.Store(0)
	for _, n := range w.nodes {
		n.skew.Store(0)
		clear(n.cut)
		clear(n.leaving)
		n.until = time.Now()
		if n.broken {
			n.mendDisk()
		}
		for _, d := range n.devices {
			d.set(false)
		}
	}
	for _, c := range w.bus.waiting() {
		c.due = time.Time{}
	}
}

// restore puts the sheep back that are no longer configured.
func (n *node) restore() {
	i := n.now
	if i == nil || !i.ready || i.gone || i.busy || len(i.members) == len(n.sheep) {
		return
	}
	members := slices.Clone(i.members)
	for _, name := range n.sheep {
		if !slices.ContainsFunc(members, func(m shepherd.Member) bool { return m.Name == name }) {
			members = append(members, i.member(name))
		}
	}
	slices.SortFunc(members, func(a, b shepherd.Member) int { return cmp.Compare(a.Name, b.Name) })
	n.apply(members, maxRun)
}
