package shepherd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shepherd"
)

// gated makes jobs whose input is "wait" end when open is called, and tells when
// one begins.
func (p *fixture) gated() (begun <-chan string, open func()) {
	began, gate := make(chan string, 10), make(chan struct{})
	p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
		if strings.HasPrefix(string(in.JobID), "wait") {
			began <- string(in.JobID)
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return echo(ctx, m, in)
	}
	return began, func() { close(gate) }
}

func (p *fixture) member(name string) shepherd.Member {
	return shepherd.Member{Name: name, Type: "fake", Sheep: p.newSheep(name)}
}

func (p *fixture) names() string {
	var names []string
	for _, s := range p.core.Sheep(p.t.Context()) {
		names = append(names, s.Name)
	}
	return strings.Join(names, " ")
}

func to(sheep string) func(*job.Request) { return func(r *job.Request) { r.Sheep = sheep } }

func (p *fixture) apply(drain time.Duration, members ...shepherd.Member) <-chan error {
	applied := make(chan error, 1)
	go func() { applied <- p.core.Apply(p.t.Context(), members, drain) }()
	return applied
}

func (p *fixture) applied(c <-chan error) {
	p.t.Helper()
	if err := receive(p.t, c, "apply does not return"); err != nil {
		p.t.Fatalf("apply: %v", err)
	}
}

// receive waits for a channel. fails says what has not happened where it waits for too long.
func receive[T any](t *testing.T, c <-chan T, fails string) T {
	t.Helper()
	select {
	case got := <-c:
		return got
	case <-time.After(hang):
		t.Fatal(fails)
		panic("unreachable")
	}
}

func (p *fixture) began(c <-chan string, want string) {
	p.t.Helper()
	if got := receive(p.t, c, "job "+want+" does not begin"); got != want {
		p.t.Fatalf("job %s began, want %s", got, want)
	}
}

// A sheep comes, one goes with its job finished, and the third is not disturbed.
func TestApplyAddsAndRemoves(t *testing.T) {
	p := newFixture(t, "b", "c")
	begun, open := p.gated()
	p.start()
	p.submit("wait-b", "m", "1", to("b"))
	p.began(begun, "wait-b")
	p.submit("wait-c", "m", "1", to("c"))
	p.began(begun, "wait-c")

	c := p.members["c"]
	applied := p.apply(hang, p.member("a"), c)
	p.submit("to-a", "m", "new") // the others are busy, so it is a's when that is up
	p.await("to-a", job.Done)
	err := p.core.Submit(t.Context(), job.Request{ID: "late", Model: job.Model{Name: "m", Version: "v1"}, Sheep: "b", Payload: []byte("x")})
	if unknown := new(job.UnknownSheep); !errors.As(err, &unknown) {
		t.Errorf("a job for a sheep that goes: %v", err)
	}
	select {
	case err := <-applied:
		t.Errorf("apply returned %v before the job of the sheep that goes had ended", err)
	default:
	}
	open()
	p.await("wait-b", job.Done)
	p.await("wait-c", job.Done)
	p.applied(applied)
	if got := p.names(); got != "a c" {
		t.Errorf("the sheep are %s", got)
	}
	if n := p.runners.Alive(); n != 2 {
		t.Errorf("%d runners are up, want a's and c's", n)
	}
	p.submit("to-c", "m", "again", to("c"))
	p.await("to-c", job.Done)
	if n := p.runners.Starts("c"); n != 1 {
		t.Errorf("the runner of the sheep that stays was started %d times", n)
	}
}

// A changed sheep hands its job back when the time is over, takes jobs addressed
// to it meanwhile, and runs both with its new configuration.
func TestApplyChanges(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1", to("sheep"))
	p.began(begun, "wait-1")
	applied := p.apply(0, p.member("sheep"))
	p.submit("next", "m", "2", to("sheep"))
	p.applied(applied)
	p.began(begun, "wait-1")
	open()
	p.await("next", job.Done)
	if s := p.await("wait-1", job.Done); s.Failure != nil {
		t.Errorf("the job that was handed back: %v", s.Failure)
	}
	rec, err := p.ledger.Get(t.Context(), "wait-1")
	if err != nil || rec.Attempt != 2 || rec.Spent != 1 {
		t.Errorf("%d of %d attempts count, %v; being handed back counts as none", rec.Spent, rec.Attempt, err)
	}
}

// What cannot be applied changes nothing.
func TestApplyAllOrNothing(t *testing.T) {
	p := newFixture(t, "a", "b")
	p.start()
	a := p.members["a"]
	if err := p.core.Apply(t.Context(), []shepherd.Member{a, p.member("c"), p.member("c")}, 0); err == nil {
		t.Error("two sheep of one name are accepted")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.core.Apply(ended, []shepherd.Member{a, p.member("c")}, 0); err == nil {
		t.Error("applied without the ledger")
	}
	if got := p.names(); got != "a b" {
		t.Errorf("the sheep are %s", got)
	}
	p.submit("job", "m", "x", to("b"))
	p.await("job", job.Done)
}

// Stop does not wait for the drain of an Apply under way longer than for its own,
// and none works after it.
func TestStopDuringApply(t *testing.T) {
	p := newFixture(t)
	begun, _ := p.gated()
	p.start()
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	applied := p.apply(time.Hour, p.member("sheep"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p.core.Stop(ended)
	if err := receive(t, applied, "apply does not return"); !errors.Is(err, job.ErrDraining) {
		t.Errorf("apply: %v", err)
	}
	if err := p.core.Apply(t.Context(), nil, 0); !errors.Is(err, job.ErrDraining) {
		t.Errorf("apply after stop: %v", err)
	}
}

// Leave lets models stay loaded and jobs go on; the next daemon has them.
func TestLeave(t *testing.T) {
	p := newFixture(t, "busy", "idle")
	begun, open := p.gated()
	p.start()
	p.submit("warm", "m", "1", to("idle"))
	p.await("warm", job.Done)
	p.submit("wait-1", "m", "result", to("busy"))
	p.began(begun, "wait-1")
	p.submit("behind", "m", "2", to("busy"))

	p.core.Leave(t.Context())
	p.core.Leave(t.Context())
	if n := p.runners.Alive(); n != 2 {
		t.Fatalf("%d runners are up, want 2", n)
	}
	rec, err := p.ledger.Get(t.Context(), "wait-1")
	if err != nil || rec.State != job.Processing || rec.Holder != "busy" {
		t.Errorf("the job that goes on is %s of %q, %v", rec.State, rec.Holder, err)
	}
	open() // it ends while no daemon is there
	p.start()
	p.await("wait-1", job.Done)
	p.await("behind", job.Done)
	if got := p.output("wait-1"); got != "result" {
		t.Errorf("it gave %q", got)
	}
	if busy, idle := p.runners.Starts("busy"), p.runners.Starts("idle"); busy != 1 || idle != 1 {
		t.Errorf("runners were started %d and %d times, want once", busy, idle)
	}
	sheep := p.core.Sheep(t.Context())
	if !slices.ContainsFunc(sheep, func(s job.Sheep) bool { return s.Name == "idle" && s.Running }) {
		t.Errorf("the idle sheep is not up: %+v", sheep)
	}
}
