package sim

import (
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/fake"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/storagetest"
)

// The ledger, the storage and the sheep of a core: the real ones behind the bus.

// through makes a call by the bus; unavailable is the error of a call that fails.
func through(ctx context.Context, by *incarnation, to target, name string, unavailable error, made func() error) error {
	switch by.bus.enter(ctx, by, to, name) {
	case proceeds:
		return made()
	case full:
		return errFull
	case lies:
		if err := made(); err != nil {
			return err
		}
		return unavailable
	case cutOff:
		return errCrashed
	case gaveUp:
		return context.Cause(ctx)
	}
	return unavailable
}

var (
	errLedgerAway  = fmt.Errorf("the ledger does not answer: %w", errdefs.ErrUnavailable)
	errStorageAway = fmt.Errorf("storage does not answer: %w", errdefs.ErrUnavailable)
	errFull        = fmt.Errorf("no space left: %w", errdefs.ErrResourceExhausted)
	errDiskFull    = fmt.Errorf("%w: no space left: %w", storage.ErrWorkDir, errdefs.ErrResourceExhausted)
	errReadOnly    = fmt.Errorf("%w: %w", storage.ErrWorkDir, unix.EROFS)
)

type busLedger struct {
	ledger.Ledger
	by *incarnation
}

func (l busLedger) do(ctx context.Context, name string, f func() error) error {
	return through(ctx, l.by, toLedger, name, errLedgerAway, f)
}

func (l busLedger) Join(ctx context.Context, node string) (lease ledger.Lease, err error) {
	err = l.do(ctx, "join", func() error { lease, err = l.Ledger.Join(ctx, node); return err })
	return lease, err
}

func (l busLedger) Create(ctx context.Context, rec job.Record) (kept job.Record, err error) {
	err = l.do(ctx, "create "+string(rec.ID), func() error { kept, err = l.Ledger.Create(ctx, rec); return err })
	return kept, err
}

func (l busLedger) Claim(ctx context.Context, slot ledger.Slot) (claim *ledger.Claim, err error) {
	err = l.do(ctx, "claim "+slot.Sheep, func() error { claim, err = l.Ledger.Claim(ctx, slot); return err })
	if err != nil {
		claim = nil
	}
	return claim, err
}

func (l busLedger) Start(ctx context.Context, id job.ID, token ledger.Token) (rec job.Record, err error) {
	err = l.do(ctx, "start "+string(id), func() error { rec, err = l.Ledger.Start(ctx, id, token); return err })
	return rec, err
}

func (l busLedger) Finish(ctx context.Context, id job.ID, token ledger.Token, o ledger.Outcome) (rec job.Record, err error) {
	err = l.do(ctx, "finish "+string(id), func() error { rec, err = l.Ledger.Finish(ctx, id, token, o); return err })
	return rec, err
}

func (l busLedger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (rec job.Record, err error) {
	err = l.do(ctx, "release "+string(id), func() error { rec, err = l.Ledger.Release(ctx, id, token, why); return err })
	return rec, err
}

func (l busLedger) Cancel(ctx context.Context, id job.ID) (rec job.Record, err error) {
	err = l.do(ctx, "cancel "+string(id), func() error { rec, err = l.Ledger.Cancel(ctx, id); return err })
	return rec, err
}

func (l busLedger) Get(ctx context.Context, id job.ID) (rec job.Record, err error) {
	err = l.do(ctx, "get "+string(id), func() error { rec, err = l.Ledger.Get(ctx, id); return err })
	return rec, err
}

func (l busLedger) LastAttempts(ctx context.Context, jobs []job.ID) (last map[job.ID]job.Attempt, err error) {
	err = l.do(ctx, "last attempts", func() error { last, err = l.Ledger.LastAttempts(ctx, jobs); return err })
	return last, err
}

func (l busLedger) Attempts(ctx context.Context, id job.ID) (attempts []job.Attempt, err error) {
	err = l.do(ctx, "attempts "+string(id), func() error { attempts, err = l.Ledger.Attempts(ctx, id); return err })
	return attempts, err
}

func (l busLedger) Held(ctx context.Context, node string) (claims []ledger.Claim, err error) {
	err = l.do(ctx, "held", func() error { claims, err = l.Ledger.Held(ctx, node); return err })
	return claims, err
}

func (l busLedger) Waiting(ctx context.Context, most int) (waiting []ledger.Waiting, err error) {
	err = l.do(ctx, "waiting", func() error { waiting, err = l.Ledger.Waiting(ctx, most); return err })
	return waiting, err
}

func (l busLedger) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) (events []job.Event, next job.Cursor, err error) {
	err = l.do(ctx, "events", func() error { events, next, err = l.Ledger.Events(ctx, after, filter, limit); return err })
	return events, next, err
}

func (l busLedger) NewestEvents(ctx context.Context, filter ledger.EventFilter, most int) (events []job.Event, next job.Cursor, err error) {
	err = l.do(ctx, "newest events", func() error { events, next, err = l.Ledger.NewestEvents(ctx, filter, most); return err })
	return events, next, err
}

func (l busLedger) Now(ctx context.Context) (cursor job.Cursor, err error) {
	err = l.do(ctx, "now", func() error { cursor, err = l.Ledger.Now(ctx); return err })
	return cursor, err
}

func (l busLedger) Checkpoint(ctx context.Context, consumer string) (cursor job.Cursor, err error) {
	err = l.do(ctx, "checkpoint", func() error { cursor, err = l.Ledger.Checkpoint(ctx, consumer); return err })
	return cursor, err
}

func (l busLedger) SetCheckpoint(ctx context.Context, consumer string, cursor job.Cursor) error {
	return l.do(ctx, "set checkpoint", func() error { return l.Ledger.SetCheckpoint(ctx, consumer, cursor) })
}

func (l busLedger) Close() error { return nil }

type busStore struct {
	storage.Store
	by *incarnation
}

func (s busStore) do(ctx context.Context, name string, id job.ID, f func() error) error {
	return through(ctx, s.by, toStorage, name+" "+string(id), errStorageAway, f)
}

func (s busStore) Exists(ctx context.Context, id job.ID) (there bool, err error) {
	err = s.do(ctx, "exists", id, func() error { there, err = s.Store.Exists(ctx, id); return err })
	return there, err
}

func (s busStore) Init(ctx context.Context, id job.ID, payload []byte) error {
	return s.do(ctx, "init", id, func() error { return s.Store.Init(ctx, id, payload) })
}

func (s busStore) Reserve(ctx context.Context, id job.ID, status job.Status) error {
	return s.do(ctx, "reserve", id, func() error { return s.Store.Reserve(ctx, id, status) })
}

func (s busStore) Stage(ctx context.Context, id job.ID, dir *os.Root, how storage.Options) (staged storage.Staged, err error) {
	switch s.by.bus.enter(ctx, s.by, toStorage, "stage "+string(id)) {
	case proceeds:
		return s.Store.Stage(ctx, id, dir, how)
	case lies:
		if _, err := s.Store.Stage(ctx, id, dir, how); err != nil {
			return storage.Staged{}, err
		}
		return storage.Staged{}, errStorageAway
	case odd:
		return storage.Staged{}, errDiskFull
	case full:
		return storage.Staged{}, errReadOnly
	case cutOff:
		return storage.Staged{}, errCrashed
	case gaveUp:
		return storage.Staged{}, context.Cause(ctx)
	}
	return storage.Staged{}, errStorageAway
}

func (s busStore) Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (c storage.Collected, err error) {
	switch s.by.bus.enter(ctx, s.by, toStorage, "collect "+string(id)) {
	case proceeds:
		return s.Store.Collect(ctx, id, dir, replace)
	case lies:
		if _, err := s.Store.Collect(ctx, id, dir, replace); err != nil {
			return storage.Collected{}, err
		}
		return storage.Collected{}, errStorageAway
	case full:
		return storage.Collected{}, errFull
	case odd: // a disk that cannot be read
		return storage.Collected{}, errReadOnly
	case cutOff:
		return storage.Collected{}, errCrashed
	case gaveUp:
		return storage.Collected{}, context.Cause(ctx)
	}
	return storage.Collected{}, errStorageAway
}

func (s busStore) Open(ctx context.Context, id job.ID, name string, part *job.Range) (f *job.File, err error) {
	err = s.do(ctx, "open", id, func() error { f, err = s.Store.Open(ctx, id, name, part); return err })
	return f, err
}

func (s busStore) Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error {
	return s.do(ctx, "put", id, func() error { return s.Store.Put(ctx, id, name, r, size) })
}

func (s busStore) List(ctx context.Context, id job.ID, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var files []storage.Info
		err := s.do(ctx, "list", id, func() (err error) {
			files, err = storagetest.All(s.Store.List(ctx, id, prefix))
			return err
		})
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
		if err != nil {
			yield(storage.Info{}, err)
		}
	}
}

func (s busStore) Status(ctx context.Context, id job.ID) (status job.Status, err error) {
	err = s.do(ctx, "status", id, func() error { status, err = s.Store.Status(ctx, id); return err })
	return status, err
}

func (s busStore) SetStatus(ctx context.Context, id job.ID, status job.Status) error {
	return s.do(ctx, "set status", id, func() error { return s.Store.SetStatus(ctx, id, status) })
}

func (s busStore) Remove(ctx context.Context, id job.ID) error {
	return s.do(ctx, "remove", id, func() error { return s.Store.Remove(ctx, id) })
}

func (s busStore) Ping(ctx context.Context) error {
	return s.do(ctx, "ping", "", func() error { return s.Store.Ping(ctx) })
}

// busSheep is a fake sheep behind the bus.
type busSheep struct {
	runtime.Sheep
	by      *incarnation
	name    string
	runners *fake.Runners
	deaf    *atomic.Bool // the sheep's runner, until there is another
	attach  atomic.Bool  // Run is to attach to a running runner
}

var _ runtime.Recoverer = (*busSheep)(nil)

func (s *busSheep) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	switch s.by.bus.enter(ctx, s.by, toSheep, s.name+" load") {
	case cutOff:
		return errCrashed
	case gaveUp:
		return context.Cause(ctx)
	case fails, lies:
		s.by.oracle.cannotLoad(s.name, m)
		return &runtime.LoadError{Message: "the registry does not answer", Class: errdefs.ErrUnavailable}
	case odd:
		return &runtime.LoadError{Message: "no space left for the image", Class: errdefs.ErrResourceExhausted}
	}
	s.attach.Store(false)
	return s.Sheep.Load(ctx, m, observe)
}

func (s *busSheep) Run(ctx context.Context, observe runtime.Observer) error {
	f := proceeds
	switch s.by.bus.enter(ctx, s.by, toSheep, s.name+" run") {
	case cutOff:
		return errCrashed
	case gaveUp:
		if s.attach.Load() { // it stops the running runner
			return s.Sheep.Run(ctx, observe)
		}
		return &runtime.Exit{Code: -1, Signal: "SIGTERM", Stopped: true}
	case deaf:
		f = deaf
	case fails, lies, full:
		if !s.runners.Kill(s.name, runtime.Exit{Code: -1, Lost: true}) { // there is none to attach to
			return &runtime.LoadError{Message: "the port is taken", Class: errdefs.ErrUnavailable}
		}
	case odd:
		if !s.runners.Kill(s.name, runtime.Exit{Code: 1}) {
			return &runtime.Exit{Code: 1, Detail: "it did not start"}
		}
	}
	if !s.attach.Swap(false) {
		s.deaf.Store(f == deaf)
	}
	s.by.oracle.loads(s.name)
	return s.Sheep.Run(ctx, observe)
}

func (s *busSheep) Conn() messenger.Conn {
	return &busConn{Conn: s.Sheep.Conn(), sheep: s}
}

func (s *busSheep) Detach() {
	if !s.by.dead() {
		s.Sheep.Detach()
	}
}

func (s *busSheep) Recover(ctx context.Context) (found *runtime.Recovered, err error) {
	switch s.by.bus.enter(ctx, s.by, toSheep, s.name+" recover") {
	case cutOff:
		return nil, errCrashed
	case gaveUp:
		return nil, context.Cause(ctx)
	}
	found, err = s.Sheep.(runtime.Recoverer).Recover(ctx)
	s.attach.Store(found != nil && found.Running)
	return found, err
}

// busConn is a connection whose runner may answer twice, or for a job that it was
// never given.
type busConn struct {
	messenger.Conn
	sheep *busSheep

	mu    sync.Mutex
	extra []messenger.Answer // to be received before any other
	last  job.ID
}

func (c *busConn) Send(ctx context.Context, in messenger.Input) error {
	lost := fmt.Errorf("the shim does not answer: %w", errdefs.ErrUnavailable)
	return through(ctx, c.sheep.by, toSheep, c.sheep.name+" send "+string(in.JobID), lost, func() error { return c.Conn.Send(ctx, in) })
}

func (c *busConn) Recv(ctx context.Context) (messenger.Answer, error) {
	c.mu.Lock()
	if len(c.extra) > 0 {
		a := c.extra[0]
		c.extra = c.extra[1:]
		c.mu.Unlock()
		return a, nil
	}
	c.mu.Unlock()
	a, err := c.Conn.Recv(ctx)
	if err != nil {
		return a, err
	}
	switch c.sheep.by.bus.enter(ctx, c.sheep.by, toSheep, c.sheep.name+" answer "+string(a.JobID)) {
	case cutOff:
		return messenger.Answer{}, messenger.ErrClosed
	case gaveUp:
		return messenger.Answer{}, context.Cause(ctx)
	case odd: // twice
		c.mu.Lock()
		c.extra = append(c.extra, a)
		c.mu.Unlock()
	case lies, fails, full: // another job's first
		c.mu.Lock()
		defer c.mu.Unlock()
		stray := messenger.Answer{JobID: "stranger"}
		if c.last != "" && c.last != a.JobID {
			stray.JobID = c.last
		}
		c.extra = append(c.extra, a)
		return stray, nil
	}
	c.mu.Lock()
	c.last = a.JobID
	c.mu.Unlock()
	return a, nil
}

func (c *busConn) Ack(ctx context.Context, id job.ID) error {
	lost := fmt.Errorf("the shim does not answer: %w", errdefs.ErrUnavailable)
	return through(ctx, c.sheep.by, toSheep, c.sheep.name+" ack "+string(id), lost, func() error { return c.Conn.Ack(ctx, id) })
}

// Cancel asks the runner to cancel a job, if it supports that.
func (c *busConn) Cancel(ctx context.Context, id job.ID) error {
	lost := fmt.Errorf("the shim does not answer: %w", errdefs.ErrUnavailable)
	return through(ctx, c.sheep.by, toSheep, c.sheep.name+" drop "+string(id), lost, func() error {
		return c.Conn.(messenger.Canceller).Cancel(ctx, id)
	})
}

// device is a sheep's GPU, which fails and recovers.
type device struct {
	mu      sync.Mutex
	out     chan struct{} // closed while it has failed
	isOut   bool
	changed func()
}

func newDevice() *device { return &device{out: make(chan struct{}), changed: func() {}} }

var errDeviceOut = fmt.Errorf("GPU 0 has fallen off the bus")

// set makes the device fail or recover.
func (d *device) set(out bool) {
	d.mu.Lock()
	if d.isOut == out {
		d.mu.Unlock()
		return
	}
	d.isOut = out
	if out {
		close(d.out)
	} else {
		d.out = make(chan struct{})
	}
	changed := d.changed
	d.mu.Unlock()
	if !out {
		changed()
	}
}

func (d *device) Admission() job.Admission {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isOut {
		return job.NoJobs
	}
	return job.AnyNow
}

func (d *device) Notify(changed func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = changed
}

func (d *device) Request() (<-chan error, func()) {
	granted := make(chan error, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isOut {
		granted <- errDeviceOut
	} else {
		granted <- nil
	}
	return granted, func() {}
}

func (d *device) Hold() (func(), bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return func() {}, !d.isOut
}

func (d *device) Fault(ctx context.Context) error {
	d.mu.Lock()
	out := d.out
	d.mu.Unlock()
	select {
	case <-out:
		return errDeviceOut
	case <-ctx.Done():
		return ctx.Err()
	}
}

// End reports that the device was lost if it has failed when a job fails.
func (d *device) End(_ job.ID, _ time.Time, failed bool) <-chan job.Account {
	d.mu.Lock()
	defer d.mu.Unlock()
	account := make(chan job.Account, 1)
	if failed && d.isOut {
		account <- job.Account{Lost: true, Cause: errDeviceOut.Error()}
	} else {
		account <- job.Account{}
	}
	return account
}

func (d *device) Yield() <-chan struct{}        { return nil }
func (d *device) Prepare(context.Context) error { return nil }
func (d *device) Started(job.Model, int)        {}
func (d *device) Stopped()                      {}
func (d *device) Begin(job.ID, time.Time)       {}
func (d *device) State() string                 { return "" }
func (d *device) Close()                        {}
