package keeper

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
)

func TestOneAtATime(t *testing.T) {
	k := open(t, Config{Turn: time.Hour, Linger: time.Nanosecond})
	a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true})
	b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true})
	other := k.Lend(Share{Sheep: "other", Devices: grants(card1)})
	var notified int
	b.Notify(func() { notified++ })

	doneA := run(t, a, "m", 1)
	if got := b.Admission(); got != job.OwnJobs {
		t.Errorf("b may claim %d while a is at work", got)
	}
	for _, l := range []*Lease{a, other} {
		if got := l.Admission(); got != job.AnyNow {
			t.Errorf("%s may claim %d", l.share.Sheep, got)
		}
	}
	chB, doneB := b.Request()
	if granted(chB) || asked(a) {
		t.Fatal("a, at work, is to yield")
	}
	if got := b.State(); !strings.Contains(got, "waiting for GPU 0") || !strings.Contains(got, "sheep a") {
		t.Errorf("b's state is %q", got)
	}
	time.Sleep(time.Microsecond) // its lingering is over
	doneA()
	k.await(t, "a is asked to yield", func() bool { return asked(a) })
	<-a.Yield()
	if granted(chB) {
		t.Fatal("b has the GPU before a's runner is gone")
	}
	a.Stopped()
	if !granted(chB) || <-chB != nil {
		t.Fatal("b does not get the GPU")
	}
	b.Started(job.Model{Name: "m"}, 2)
	doneB()
	doneB() // twice is once
	if got := a.Admission(); got != job.AnyJobs {
		t.Errorf("a may claim %d while b is idle", got)
	}
	if notified == 0 {
		t.Error("b was not told that it may claim more")
	}
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := open(t, Config{Turn: time.Minute, Linger: time.Second})
		a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true})
		b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true})
		doneA := run(t, a, "m", 1)
		chB, doneB := b.Request()
		for range 3 { // one job after another, as long as the turn lasts
			next, doneNext := a.Request()
			doneA()
			if !granted(next) {
				t.Fatal("a's next job does not begin")
			}
			doneA = doneNext
			time.Sleep(15 * time.Second)
		}
		next, doneNext := a.Request()
		time.Sleep(20 * time.Second)
		doneA()
		if granted(next) || !asked(a) {
			t.Fatal("a's turn does not end")
		}
		<-a.Yield()
		a.Stopped()
		if !granted(chB) || granted(next) {
			t.Fatal("it is b's turn")
		}
		b.Started(job.Model{}, 2)
		doneB()
		synctest.Wait()
		if asked(b) {
			t.Fatal("b has no moment to begin another job")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !asked(b) {
			t.Fatal("b is idle and does not yield")
		}
		<-b.Yield()
		b.Stopped()
		if !granted(next) {
			t.Fatal("it is a's turn again")
		}
		doneNext()
	})
}

func TestBudgets(t *testing.T) {
	k := open(t, Config{Turn: time.Nanosecond})
	share := func(name string, memory int64) *Lease {
		return k.Lend(Share{Sheep: name, Devices: grants(card0), Shared: true, Memory: memory * gib})
	}
	a, b, c, whole := share("a", 30), share("b", 30), share("c", 30), share("whole", 0)
	run(t, a, "m", 1)()
	time.Sleep(time.Millisecond) // used at different times
	run(t, b, "m", 2)()
	if asked(a) || asked(b) {
		t.Fatal("both fit")
	}
	chC, doneC := c.Request()
	if granted(chC) || !asked(a) || asked(b) {
		t.Fatalf("a was used least recently: asked are a %t, b %t", asked(a), asked(b))
	}
	chWhole, doneWhole := whole.Request()
	<-a.Yield()
	a.Stopped()
	if !granted(chC) || granted(chWhole) {
		t.Fatal("c fits beside b, and was first")
	}
	c.Started(job.Model{}, 3)
	if asked(b) {
		t.Fatal("b need not go before c is idle")
	}
	doneC()
	if !asked(b) || !asked(c) {
		t.Fatal("all have to go for a sheep that takes the whole GPU")
	}
	for _, l := range []*Lease{b, c} {
		<-l.Yield()
		l.Stopped()
	}
	if !granted(chWhole) {
		t.Fatal("the GPU is free")
	}
	doneWhole()
}

// TestNobodyPasses has a sheep that needs two GPUs not starve behind those that
// need one, and hold neither while it waits.
func TestNobodyPasses(t *testing.T) {
	k := open(t, Config{Turn: time.Nanosecond})
	a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true})
	b := k.Lend(Share{Sheep: "b", Devices: grants(card1), Shared: true})
	both := k.Lend(Share{Sheep: "both", Devices: grants(card0, card1), Shared: true})
	c := k.Lend(Share{Sheep: "c", Devices: grants(card1), Shared: true})
	doneA, doneB := run(t, a, "m", 1), run(t, b, "m", 2)
	chBoth, doneBoth := both.Request()
	chC, doneC := c.Request()
	doneB()
	if asked(b) {
		t.Error("b was asked to go though that helps nobody yet")
	}
	next, doneNext := b.Request()
	if granted(next) || granted(chC) {
		t.Error("one that came later passed")
	}
	doneA()
	for _, l := range []*Lease{a, b} {
		if !asked(l) {
			t.Fatalf("%s is not asked to go", l.share.Sheep)
		}
		<-l.Yield()
		l.Stopped()
	}
	if !granted(chBoth) || granted(chC) || granted(next) {
		t.Fatal("both is first")
	}
	doneBoth()
	if !granted(chC) || granted(next) {
		t.Fatal("c is second")
	}
	doneC()
	if !granted(next) {
		t.Fatal("b is third")
	}
	doneNext()
}

func TestHold(t *testing.T) {
	k := open(t, Config{Turn: time.Hour, Linger: time.Hour})
	a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true})
	b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true})
	a.Started(job.Model{Name: "m"}, 0) // found up
	if _, ok := b.Hold(); ok {
		t.Fatal("b holds what a has")
	}
	doneA, ok := a.Hold()
	if !ok {
		t.Fatal("a's runner is up")
	}
	ch, doneB := b.Request()
	doneA()
	a.Stopped()
	if !granted(ch) {
		t.Fatal("b does not get the GPU")
	}
	if _, ok := a.Hold(); ok {
		t.Fatal("a holds what b has")
	}
	doneB()
	doneA, ok = a.Hold()
	if !ok {
		t.Fatal("nobody has or wants the GPU")
	}
	doneA()
}

// TestWithoutDriver has leases work by names where the driver says nothing, and
// under whatever name.
func TestWithoutDriver(t *testing.T) {
	k := open(t, Config{Turn: time.Hour})
	node := gpu.Grant{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "0", Node: true}}
	name := gpu.Grant{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "0"}}
	a := k.Lend(Share{Sheep: "a", Devices: []gpu.Grant{node}, Shared: true, Memory: gib})
	b := k.Lend(Share{Sheep: "b", Devices: []gpu.Grant{name}, Shared: true, Memory: gib})
	amd := k.Lend(Share{Sheep: "amd", Devices: []gpu.Grant{{Device: gpu.Device{Kind: gpu.AMD, Name: "0"}}}})
	done := run(t, a, "m", 1)
	if ch, _ := b.Request(); granted(ch) {
		t.Error("how much memory there is is not known: sheep are alone")
	}
	take(t, amd)()
	done()
	if got := k.Known().Others; len(got) != 2 || len(got[0].Sheep) != 2 {
		t.Errorf("the devices are %+v", got)
	}
}

// scenario is some sheep on some GPUs, each with its jobs.
type scenario struct {
	turn  time.Duration
	sheep []part
}

type part struct {
	cards  []gpu.GPU
	memory int64
	jobs   []work
}

type work struct{ pause, lasts time.Duration }

const stopping = 2 * time.Second // how long a fake runner takes to end

// play runs the scenario in made-up time and says what went wrong.
func play(s scenario) (wrong []string) {
	k := New(Config{Source: newDriver(), Turn: s.turn})
	defer k.Close()
	var mu sync.Mutex
	fault := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		wrong = append(wrong, fmt.Sprintf(format, args...))
	}
	// What is on each GPU, as the runners themselves see it.
	there := make(map[string]map[int]int64)
	enter := func(i int, p part) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range p.cards {
			if there[c.UUID] == nil {
				there[c.UUID] = make(map[int]int64)
			}
			there[c.UUID][i] = p.memory
			var sum int64
			for _, memory := range there[c.UUID] {
				sum += memory
				if memory == 0 && len(there[c.UUID]) > 1 {
					wrong = append(wrong, fmt.Sprintf("sheep %d shares %s with one that takes all of it", i, c.UUID))
				}
			}
			if sum > int64(c.Memory) {
				wrong = append(wrong, fmt.Sprintf("%d GiB on a GPU of %d", sum/gib, c.Memory/gib))
			}
		}
	}
	// On one GPU alone: how long nobody is at work though somebody waits.
	one := !slices.ContainsFunc(s.sheep, func(p part) bool { return len(p.cards) > 1 || p.cards[0].UUID != card0.UUID })
	atWork, waiting := 0, 0
	var since time.Time // when it began that nobody is
	count := func(work, wait int) {
		mu.Lock()
		defer mu.Unlock()
		before := atWork == 0 && waiting > 0
		atWork += work
		waiting += wait
		now := atWork == 0 && waiting > 0
		switch {
		case now && !before:
			since = time.Now()
		case before && !now && one && time.Since(since) > stopping+DefaultLinger:
			wrong = append(wrong, fmt.Sprintf("the GPU was idle for %v though a sheep waited", time.Since(since)))
		}
	}
	leave := func(i int, p part) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range p.cards {
			delete(there[c.UUID], i)
		}
	}
	var longest time.Duration
	for _, p := range s.sheep {
		for _, w := range p.jobs {
			longest = max(longest, w.lasts)
		}
	}
	// Each of the others may have a turn, and a job begun in it, before it is one's own.
	patience := time.Duration(len(s.sheep)+1) * (s.turn + 2*longest + stopping + 2*DefaultLinger) * 2

	var flock sync.WaitGroup
	var finished sync.WaitGroup
	over := make(chan struct{})
	for i, p := range s.sheep {
		l := k.Lend(Share{Sheep: fmt.Sprint(i), Devices: grants(p.cards...), Shared: true, Memory: p.memory})
		finished.Add(1)
		flock.Go(func() {
			up := false
			stop := func() {
				time.Sleep(stopping)
				leave(i, p)
				l.Stopped()
				up = false
			}
			rest := func(ends <-chan struct{}, pause time.Duration) {
				until := time.After(pause)
				for {
					select {
					case <-until:
						return
					case <-ends:
						return
					case <-l.Yield():
						stop()
					}
				}
			}
			for _, w := range p.jobs {
				rest(nil, w.pause)
				asked := time.Now()
				count(0, 1)
				ch, done := l.Request()
			waiting:
				for {
					select {
					case err := <-ch:
						if err != nil {
							fault("sheep %d: %v", i, err)
						}
						break waiting
					case <-l.Yield():
						stop()
					}
				}
				count(1, -1)
				if waited := time.Since(asked); waited > patience {
					fault("sheep %d waited %v, longer than %v", i, waited, patience)
				}
				if !up {
					enter(i, p)
					l.Started(job.Model{}, 0)
					up = true
				}
				select {
				case <-l.Yield():
					fault("sheep %d is to yield at work", i)
				case <-time.After(w.lasts):
				}
				done()
				count(-1, 0)
			}
			finished.Done()
			rest(over, 1000*time.Hour)
			if up {
				leave(i, p)
				l.Stopped()
			}
		})
	}
	finished.Wait()
	close(over)
	flock.Wait()
	return wrong
}

// TestFlock has random sheep with random jobs share GPUs: every job is run, in
// bounded time, no GPU has more on it than fits, and one GPU is not idle while a
// sheep waits for it, but for the moment that a change of models takes.
func TestFlock(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cards := []gpu.GPU{card0, card1}
		s := scenario{turn: time.Duration(rapid.IntRange(1, 60).Draw(r, "turn")) * time.Second}
		most := rapid.IntRange(1, 2).Draw(r, "GPUs")
		for range rapid.IntRange(2, 5).Draw(r, "sheep") {
			p := part{
				cards:  cards[:rapid.IntRange(1, most).Draw(r, "cards")],
				memory: rapid.SampledFrom([]int64{0, 20, 40, 50, 80}).Draw(r, "memory") * gib,
			}
			if most == 2 && len(p.cards) == 1 && rapid.Bool().Draw(r, "second") {
				p.cards = cards[1:]
			}
			p.jobs = rapid.SliceOfN(rapid.Custom(func(r *rapid.T) work {
				return work{
					pause: rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, time.Minute}).Draw(r, "pause"),
					lasts: time.Duration(rapid.IntRange(1, 40_000).Draw(r, "lasts")) * time.Millisecond,
				}
			}), 1, 12).Draw(r, "jobs")
			s.sheep = append(s.sheep, p)
		}
		var wrong []string
		synctest.Test(t, func(*testing.T) { wrong = play(s) })
		if len(wrong) > 0 {
			r.Fatalf("%s", strings.Join(slices.Compact(wrong), "\n"))
		}
	})
}

// TestAssign has a sheep's GPUs be chosen when the driver is there to ask.
func TestAssign(t *testing.T) {
	k := open(t, Config{Turn: time.Hour})
	a := k.Lend(Share{Sheep: "a", Shared: true})
	b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true})
	take(t, a)()
	a.Assign(grants(card0))
	defer take(t, a)()
	if ch, _ := b.Request(); granted(ch) {
		t.Error("both have the GPU")
	}
}
