package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
)

// TestOutAndBack takes a GPU out for every reason there is: its sheep is told,
// takes no jobs, and gets them again when the GPU is well.
func TestOutAndBack(t *testing.T) {
	two := uint64(2)
	for name, c := range map[string]struct {
		says  gpu.Sample
		why   string
		stays func(*gpu.GPU) // what a test still finds at first
	}{
		"lost":     {state(card0, func(s *gpu.State) { s.Lost = true }), "fell off the bus", func(g *gpu.GPU) { g.Lost = true }},
		"xid":      {xid(card0, 79), "Xid 79, the GPU has fallen off the bus", func(g *gpu.GPU) { g.UUID = "GPU-else" }},
		"reset":    {state(card0, func(s *gpu.State) { s.ResetRequired = true }), "must be reset", func(g *gpu.GPU) { g.ResetRequired = true }},
		"remap":    {state(card0, func(s *gpu.State) { s.RowRemapFailed = true }), "must be repaired", func(g *gpu.GPU) { g.RowRemapFailed = true }},
		"ECC":      {state(card0, func(s *gpu.State) { s.Uncorrectable = &two }), "it had 1 uncorrectable ECC errors", nil},
		"override": {xid(card0, 31), "Xid 31, broken for certain", nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := uint64(1)
				first := card0
				first.Uncorrectable = &one
				d := newDriver(first, card1)
				xids := DefaultXids()
				xids[31] = XidRule{Retire, "broken for certain"}
				k := watched(t, Config{Source: d, Retest: time.Minute, Xids: xids})
				a := k.Lend(Share{Sheep: "a", Devices: grants(card0)})
				idle := k.Lend(Share{Sheep: "idle", Devices: grants(card0), Shared: true})
				other := k.Lend(Share{Sheep: "other", Devices: grants(card1)})
				var told int
				a.Notify(func() { told++ })
				idle.Started(job.Model{Name: "n"}, 0)
				doneIdle, _ := idle.Hold()
				doneIdle()
				a.Started(job.Model{Name: "m"}, 0)
				done, _ := a.Hold()
				next, doneNext := a.Request()

				failing := make(chan error, 1)
				go func() { failing <- a.Fault(t.Context()) }()
				if c.stays != nil {
					d.set(func() { c.stays(&d.inv.GPUs[0]) })
				}
				d.say(c.says)
				if err := <-failing; !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "GPU 0 (Test A100, GPU-aaaa)") {
					t.Errorf("the sheep is told %q, want the GPU and %q", err, c.why)
				}
				if err := <-next; err == nil {
					t.Error("a request is granted")
				}
				doneNext()
				if !asked(idle) {
					t.Error("the idle sheep keeps its model")
				}
				done()
				a.Stopped()
				if got := a.Admission(); got != job.NoJobs {
					t.Errorf("the sheep may claim %d", got)
				}
				if got := other.Admission(); got != job.AnyNow {
					t.Errorf("the sheep of the other GPU may claim %d", got)
				}
				if s := a.State(); !strings.Contains(s, c.why) || !strings.Contains(s, "tested again at") {
					t.Errorf("the sheep's state is %q", s)
				}
				if g := k.Known().GPUs[0]; g.Health != job.Out || !strings.Contains(g.Detail, c.why) || g.Since.IsZero() || g.Retest.Sub(g.Since) != time.Minute {
					t.Errorf("the GPU is shown as %+v", g)
				}

				if c.stays != nil {
					time.Sleep(90 * time.Second)
					synctest.Wait()
					if a.Admission() != job.NoJobs {
						t.Fatal("it is back though it is not well")
					}
					d.set(func() { d.inv.GPUs[0] = first })
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if a.Admission() == job.NoJobs || told == 0 {
					t.Fatalf("it is not back: %s", a.State())
				}
				if g := k.Known().GPUs[0]; g.Health != job.Well || g.Detail != "" {
					t.Errorf("the GPU is shown as %+v", g)
				}
			})
		})
	}
}

// TestFlapping has a GPU that goes out again soon be tested less often.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		k := watched(t, Config{Source: d, Retest: time.Minute})
		for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			d.say(xid(card0, 79))
			if g := k.Known().GPUs[0]; g.Retest.Sub(g.Since) != want {
				t.Fatalf("tested after %v, want %v", g.Retest.Sub(g.Since), want)
			}
			time.Sleep(want + time.Second)
			synctest.Wait()
			if k.Known().GPUs[0].Health != job.Well {
				t.Fatal("it is not back")
			}
		}
		time.Sleep(time.Hour)
		d.say(xid(card0, 79))
		if g := k.Known().GPUs[0]; g.Retest.Sub(g.Since) != time.Minute {
			t.Error("it is not forgotten")
		}
	})
}

// TestDriverFails has no driver, a hung one and one that crashes stop nothing, and
// be shown.
func TestDriverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		d.err = errBroken
		k := open(t, Config{Source: d})
		a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true, Memory: 40 * gib})
		k.Start()
		k.await(t, "the driver's failure is known", func() bool { return k.trouble != nil })
		take(t, a)()
		if err := a.Prepare(t.Context()); err != nil {
			t.Errorf("a model may not be started: %v", err)
		}
		v := k.Known()
		if v.Trouble != errBroken.Error() || v.GPUs[0].Health != job.Unknown || v.GPUs[0].Detail != errBroken.Error() {
			t.Errorf("shown is %+v", v)
		}
		d.set(func() { d.err = nil })
		time.Sleep(2 * maxPause)
		synctest.Wait()
		if v := k.Known(); v.Trouble != "" || v.GPUs[0].Health != job.Well || v.Driver == "" {
			t.Errorf("shown is %+v after the driver has come", v)
		}
		d.fail <- errors.New("it crashed")
		synctest.Wait()
		if v := k.Known(); v.Trouble != "it crashed" {
			t.Errorf("shown is %+v", v)
		}
		take(t, a)()
		d.set(func() { d.inv.GPUs = nil }) // gone when the driver is back
		time.Sleep(2 * maxPause)
		synctest.Wait()
		if a.Admission() != job.NoJobs {
			t.Error("a GPU that the driver does not know any more is not out")
		}
	})
}

// TestDriverComesLate has the names of a configuration find their GPUs when the
// driver tells of them.
func TestDriverComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mig := card1
		mig.MIGMode = true
		mig.MIG = []gpu.Instance{{Index: 3, UUID: "MIG-cccc", Memory: 10 * gib}}
		d := newDriver(card0, mig)
		d.err = errBroken
		k := open(t, Config{Source: d})
		named := func(name string, node bool) []gpu.Grant {
			return []gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: name, Node: node}}}
		}
		a := k.Lend(Share{Sheep: "a", Devices: named("0", true), Shared: true})
		b := k.Lend(Share{Sheep: "b", Devices: named("GPU-aaaa", false), Shared: true})
		c := k.Lend(Share{Sheep: "c", Devices: named("1:3", false)})
		k.Start()
		k.await(t, "the driver's failure is known", func() bool { return k.trouble != nil })
		take(t, a)()
		d.set(func() { d.err = nil })
		time.Sleep(2 * maxPause)
		synctest.Wait()
		done := take(t, a)
		if ch, _ := b.Request(); granted(ch) {
			t.Error("two names of one GPU are not the same")
		}
		done()
		d.say(xid(card1, 79))
		if c.Admission() != job.NoJobs {
			t.Error("a MIG instance is well though its GPU is out")
		}
		if v := k.Known(); len(v.Others) != 0 || len(v.GPUs[0].Sheep) != 2 || v.GPUs[1].Sheep[0].Device != "MIG-cccc" {
			t.Errorf("shown is %+v", v)
		}
	})
}

// TestXidExplains has a program's Xid be in the account of a job that failed, and
// its runner get no other job.
func TestXidExplains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		k := watched(t, Config{Source: d, Turn: time.Hour})
		a := k.Lend(Share{Sheep: "a", Devices: grants(card0)})
		const cause = "GPU 0 (Test A100, GPU-aaaa): it reported Xid 31, GPU memory page fault"
		for name, c := range map[string]struct {
			failed      bool
			before      []gpu.Sample // the end
			after       []gpu.Sample
			cause       string
			replaced    bool
			fromEarlier bool
		}{
			"in time":      {failed: true, before: []gpu.Sample{xid(card0, 31), xid(card0, 31)}, cause: cause, replaced: true},
			"late":         {failed: true, after: []gpu.Sample{xid(card0, 31)}, cause: cause, replaced: true},
			"done anyhow":  {before: []gpu.Sample{xid(card0, 31)}},
			"none":         {failed: true},
			"ignored":      {failed: true, before: []gpu.Sample{xid(card0, 45)}},
			"not listed":   {failed: true, before: []gpu.Sample{xid(card0, 999)}, cause: "GPU 0 (Test A100, GPU-aaaa): it reported Xid 999, see NVIDIA's list of Xid errors", replaced: true},
			"from earlier": {failed: true, fromEarlier: true},
		} {
			time.Sleep(time.Second)
			done := run(t, a, "m", 1)
			if c.fromEarlier {
				d.say(xid(card0, 31))
				time.Sleep(time.Millisecond)
			}
			a.Begin("x", time.Now())
			d.say(c.before...)
			time.Sleep(3 * time.Second)
			told := a.End("x", time.Now(), c.failed)
			d.say(c.after...)
			got := <-told
			if got.Cause != c.cause || got.GPUTime != 3*time.Second {
				t.Errorf("%s: the account is %+v, want the cause %q", name, got, c.cause)
			}
			done()
			if asked(a) != c.replaced {
				t.Errorf("%s: the runner is replaced: %t", name, asked(a))
			}
			next, doneNext := a.Request()
			if granted(next) == c.replaced {
				t.Errorf("%s: the next job begins in the same runner", name)
			}
			if asked(a) {
				<-a.Yield()
			}
			a.Stopped()
			if !granted(next) {
				t.Errorf("%s: the next job does not begin", name)
			}
			doneNext()
		}
		if got := <-a.End("unknown", time.Now(), true); got != (job.Account{}) {
			t.Errorf("the account of an unknown job is %+v", got)
		}
	})
}

// TestMemory follows what processes have: that of jobs, what has to be back
// before a model is started, and what is not ours.
func TestMemory(t *testing.T) {
	root := procFolder(t, map[int][2]string{
		100: {"1", "/daemon/runner-a"}, 101: {"100", "/daemon/runner-a"}, 102: {"1", "/daemon/runner-a"},
		200: {"1", "/daemon"}, 201: {"200", "/daemon"}, 202: {"1", "/daemon"},
		900: {"1", "/user"},
	})
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		k := watched(t, Config{Source: d, MemoryWait: time.Minute, Proc: root, Linger: time.Nanosecond})
		a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true, Memory: 50 * gib})
		b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true, Memory: 40 * gib})
		whole := k.Lend(Share{Sheep: "whole", Devices: grants(card0), Shared: true})
		use := func(used map[int]uint64) gpu.Sample {
			return state(card0, func(s *gpu.State) {
				for pid, n := range used {
					s.Processes = append(s.Processes, gpu.Process{PID: pid, Used: n * gib})
					s.Used += n * gib
				}
			})
		}

		done := run(t, a, "m", 100)
		a.Begin("x", time.Now())
		d.say(use(map[int]uint64{100: 1, 101: 20, 102: 9, 900: 3}), use(map[int]uint64{100: 1, 900: 3}), use(map[int]uint64{100: 1, 900: 3}))
		if got := <-a.End("x", time.Now(), false); got.GPUMemory != 30*gib {
			t.Errorf("the job had %d GiB at most, want 30", got.GPUMemory/gib)
		}
		v := k.Known().GPUs[0]
		if len(v.Foreign) != 1 || v.Foreign[0] != (job.Process{PID: 900, Name: "python3", Used: 3 * gib}) {
			t.Errorf("not ours is %+v", v.Foreign)
		}
		if v.Used != 4*gib || v.Sheep[0].Used != gib || v.Sheep[0].Model.Name != "m" || v.Sheep[1].Used != 0 {
			t.Errorf("shown is %+v", v)
		}
		d.say(use(map[int]uint64{100: 30, 900: 20}))
		next, doneNext := b.Request()
		time.Sleep(time.Second)
		done()
		time.Sleep(time.Second)
		synctest.Wait()
		<-a.Yield()
		a.Stopped()
		<-next

		ready := make(chan error, 1)
		go func() { ready <- b.Prepare(t.Context()) }()
		check := func(when string, now bool) {
			t.Helper()
			synctest.Wait()
			if len(ready) > 0 != now {
				t.Fatalf("%s: ready is %t", when, !now)
			}
		}
		check("before the driver has spoken", false)
		d.say(use(map[int]uint64{100: 30, 900: 20}))
		check("while a's process has its memory", false)
		if s := b.State(); !strings.Contains(s, "waiting for memory") || !strings.Contains(s, "process 100 (python3), left by sheep a, has 30.0 GiB") {
			t.Errorf("b's state is %q", s)
		}
		d.say(use(map[int]uint64{900: 20}))
		check("when it is back", true)
		if err := <-ready; err != nil {
			t.Fatal(err)
		}

		d.say(use(map[int]uint64{900: 41}))
		err := b.Prepare(t.Context())
		if !errdefs.IsUnavailable(err) {
			t.Fatalf("the error is %v", err)
		}
		for _, word := range []string{"GPU 0 (Test A100, GPU-aaaa) has 39.0 GiB of 80.0 GiB free", "sheep b needs 40.0 GiB (gpu_memory)", "process 900 (python3), which is not shepherd's, has 41.0 GiB"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %q", err, word)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := b.Prepare(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended context gives %v", err)
		}

		// One that takes all there is minds only what other sheep have left.
		b.Started(job.Model{}, 200)
		d.say(use(map[int]uint64{201: 5, 202: 1, 900: 41}))
		if n := len(k.Known().GPUs[0].Foreign); n != 2 { // 202 has no parent of ours and no group of its own
			t.Errorf("%d processes are not ours", n)
		}
		doneNext()
		b.Stopped()
		take(t, whole)
		d.say(use(map[int]uint64{201: 5, 900: 41}))
		if err := whole.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "process 201 (python3), left by sheep b, has 5.0 GiB") {
			t.Errorf("the error is %v", err)
		}
		d.say(use(map[int]uint64{900: 41}))
		if err := whole.Prepare(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestSpare has an idle sheep that took more than its budget go for one that does
// not find its own.
func TestSpare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		k := watched(t, Config{Source: d})
		a := k.Lend(Share{Sheep: "a", Devices: grants(card0), Shared: true, Memory: 10 * gib})
		b := k.Lend(Share{Sheep: "b", Devices: grants(card0), Shared: true, Memory: 40 * gib})
		run(t, a, "m", 1)()
		d.say(state(card0, func(s *gpu.State) { s.Used = 60 * gib }))
		defer take(t, b)()
		ready := make(chan error, 1)
		go func() { ready <- b.Prepare(t.Context()) }()
		<-a.Yield()
		a.Stopped()
		d.say(card0AsIs())
		if err := <-ready; err != nil {
			t.Error(err)
		}
	})
}

func card0AsIs() gpu.Sample { return state(card0, func(*gpu.State) {}) }

func TestBelongs(t *testing.T) {
	root := procFolder(t, map[int][2]string{
		10: {"1", "/pod/runner"}, 11: {"10", "/x"}, 12: {"11", "/y"}, 13: {"1", "/pod/runner/child"},
		14: {"1", "/pod/runner-2"}, 15: {"1", "/daemon"}, 20: {"1", "/daemon"}, 30: {"1", "/"}, 31: {"1", "/z"},
	})
	if err := os.WriteFile(filepath.Join(root, "12", "stat"), []byte("12 ("), 0o644); err != nil {
		t.Fatal(err)
	}
	p := processes{root}
	for _, c := range []struct {
		pid, runner int
		want        bool
	}{
		{10, 10, true}, {11, 10, true}, {12, 10, false}, {13, 10, true}, {14, 10, false},
		{15, 20, false}, // the daemon's own group says nothing
		{31, 30, false}, // nor does that of all
		{77, 10, false}, {10, 77, false},
	} {
		if got := p.belongs(c.pid, c.runner); got != c.want {
			t.Errorf("process %d belongs to runner %d: %t, want %t", c.pid, c.runner, got, c.want)
		}
	}
	if self := (processes{"/proc"}); !self.belongs(os.Getpid(), os.Getppid()) || self.name(os.Getpid()) == "?" {
		t.Error("this process is not its parent's")
	}
}

// TestClose ends what is under way, and twice and before Start.
func TestClose(t *testing.T) {
	New(Config{Source: newDriver()}).Close()
	d := newDriver(card0)
	k := watched(t, Config{Source: d})
	a := k.Lend(Share{Sheep: "a", Devices: grants(card0)})
	a.Begin("x", time.Now())
	told := a.End("x", time.Now(), true)
	k.Close()
	k.Close()
	if got := <-told; got.Cause != "" {
		t.Errorf("told %+v", got)
	}
	if got := k.GPUs(t.Context()); len(got.GPUs) != 1 {
		t.Errorf("shown is %+v", got)
	}
	a.Close()
	if got := k.GPUs(t.Context()).GPUs[0].Sheep; len(got) != 0 {
		t.Errorf("the lease is still there: %+v", got)
	}
}

// pausing is a driver that answers once, and then not until it is let go.
type pausing struct {
	*driver
	answered atomic.Bool
	once     sync.Once
	asked    chan struct{} // closed when it does not answer
}

func (p *pausing) Inventory(ctx context.Context) (*gpu.Inventory, error) {
	if !p.answered.Swap(true) {
		return p.driver.Inventory(ctx)
	}
	p.once.Do(func() { close(p.asked) })
	<-ctx.Done()
	return nil, ctx.Err()
}

// A keeper is closed while a GPU that is out is being tested.
func TestCloseDuringRetest(t *testing.T) {
	d := &pausing{driver: newDriver(card0), asked: make(chan struct{})}
	k := New(Config{Source: d, Retest: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	k.Start()
	d.say(xid(card0, 79))
	<-d.asked
	closed := make(chan struct{})
	go func() { k.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(hang):
		t.Fatal("the keeper does not end")
	}
}

// placed are card0 and card1, with their PCI addresses.
func placed() (a, b gpu.GPU) {
	a, b = card0, card1
	a.PCI, b.PCI = "0000:3b:00.0", "0000:86:00.0"
	return a, b
}

// TestLetGo has the watch close a GPU that is out, so that the driver can reset
// it, go on with the others, and open it again when it is well.
func TestLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := placed()
		d := newDriver(a, b)
		k := watched(t, Config{Source: d, Retest: time.Minute})
		other := k.Lend(Share{Sheep: "other", Devices: grants(b)})
		d.set(func() { d.inv.GPUs[0].ResetRequired = true })
		d.say(xid(a, 48))
		synctest.Wait()
		if got := fmt.Sprint(d.watches); got != "[[] [0000:86:00.0]]" {
			t.Fatalf("watched were %s; GPU 0 is not let go of", got)
		}
		d.say(xid(b, 79)) // what another reports is heard
		if other.Admission() != job.NoJobs {
			t.Error("the Xid of another GPU was missed")
		}
		synctest.Wait()
		if len(d.watches) != 2 || d.held != nil {
			t.Errorf("watched were %v, and are %v though both are out", d.watches, d.held)
		}
		d.set(func() { d.inv.GPUs[0].ResetRequired = false })
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if v := k.Known(); v.GPUs[0].Health != job.Well || v.GPUs[1].Health != job.Well || len(d.watches) != 3 || d.watches[2] != nil {
			t.Errorf("watched were %v, shown is %+v", d.watches, v.GPUs)
		}
	})
}

// TestUnidentified has GPUs that are lost before they say who they are be out,
// each by itself, and be known when they answer.
func TestUnidentified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := func(i int) gpu.GPU { return gpu.GPU{Index: i, Minor: i, State: gpu.State{Lost: true}} }
		d := newDriver(card0, lost(1), lost(2))
		k := watched(t, Config{Source: d, Retest: time.Minute})
		named := k.Lend(Share{Sheep: "a", Devices: []gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "1"}}}})
		v := k.Known()
		if len(v.GPUs) != 3 || v.GPUs[0].Health != job.Well || v.GPUs[1].Health != job.Out || v.GPUs[2].Health != job.Out || v.GPUs[1].Retest.IsZero() {
			t.Fatalf("shown is %+v", v.GPUs)
		}
		if named.Admission() != job.NoJobs || !strings.Contains(named.State(), "GPU 1 (which does not answer) is out: it does not answer any more") {
			t.Errorf("its sheep may claim %d, %q", named.Admission(), named.State())
		}
		d.set(func() { d.inv.GPUs[1] = card1 })
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		v = k.Known()
		if len(v.GPUs) != 3 || v.GPUs[1].UUID != card1.UUID || v.GPUs[1].Health != job.Well || v.GPUs[2].Health != job.Out || named.Admission() == job.NoJobs {
			t.Errorf("shown is %+v, its sheep may claim %d", v.GPUs, named.Admission())
		}
		// One that was known and does not say its UUID any more is the same GPU.
		d.set(func() { d.inv.GPUs[1] = lost(1) })
		d.fail <- errors.New("it crashed")
		time.Sleep(2 * maxPause)
		synctest.Wait()
		v = k.Known()
		if len(v.GPUs) != 3 || v.GPUs[1].UUID != card1.UUID || v.GPUs[1].Health != job.Out || named.Admission() != job.NoJobs {
			t.Errorf("shown is %+v", v.GPUs)
		}
	})
}

// TestLostInWatch has a watch that begins with a GPU lost meanwhile name it by
// its index.
func TestLostInWatch(t *testing.T) {
	d := newDriver(card0, card1)
	k := watched(t, Config{Source: d})
	d.say(gpu.Sample{Index: 1, State: &gpu.State{Lost: true}}, gpu.Sample{})
	if v := k.Known(); v.GPUs[0].Health != job.Well || v.GPUs[1].Health != job.Out {
		t.Errorf("shown is %+v", v.GPUs)
	}
}

// TestEarliestRetest has each GPU be tested when it is due, whatever others wait
// for.
func TestEarliestRetest(t *testing.T) {
	for range 10 { // the order of a map is random
		synctest.Test(t, func(t *testing.T) {
			d := newDriver(card0, card1)
			k := watched(t, Config{Source: d, Retest: time.Minute})
			d.say(xid(card1, 79))
			time.Sleep(61 * time.Second)
			synctest.Wait()
			d.say(xid(card1, 79)) // for the second time: two minutes
			d.say(xid(card0, 79)) // one
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if v := k.Known(); v.GPUs[0].Health != job.Well || v.GPUs[1].Health != job.Out {
				t.Fatalf("shown is %+v", v.GPUs)
			}
		})
	}
}

// TestReasonStays has a reason be the same however often a test fails.
func TestReasonStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(card0)
		k := watched(t, Config{Source: d, Retest: time.Minute})
		d.set(func() { d.err = errBroken })
		d.say(xid(card0, 79))
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		const want = "it reported Xid 79, the GPU has fallen off the bus; it could not be tested: shepherd-gpu crashed"
		if got := k.Known().GPUs[0].Detail; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
