package api

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
)

// fake is a Service in memory that keeps the contract's promises.
type fake struct {
	mu         sync.Mutex
	jobs       map[job.ID]*fakeJob
	submitted  []job.Request
	sheep      []job.Sheep
	order      func(ctx context.Context, sheep string, o job.Order) error
	checks     []job.Check
	models     []job.KeptModel
	usual      map[job.Model]job.Usual
	removed    []job.Model
	removedOf  string // the node of the last removal
	unanswered []job.UnansweredNode
	retried    []job.ID
	queried    []job.Query
	// pull and logs, when set, stand in for PullModel and Logs.
	pull    func(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error
	logs    func(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error)
	jobLogs func(ctx context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error)
	// log are the events, whose cursors are "1", "2" and so on; the first pruned are gone.
	log    []job.Event
	pruned int
	bell   chan struct{}
	// slow has Remove take longer than clients wait.
	slow bool
	// enters has Submit make a job of what it takes.
	enters bool
	// files are the inputs of each job that was submitted with files.
	files map[job.ID]map[string]string
	// bells are those of Watch.
	bells map[job.ID][]chan struct{}
	// hold, when set, is called by Submit.
	hold func()
	// store, when set, is called by SubmitFiles and SubmitAll when they have the request.
	store func(ctx context.Context) error
	// down, when set, is what every method that can fail answers.
	down error
	// panics, when set, is what every method panics with.
	panics string
	// body, when set, stands in for the contents of files.
	body func(job.Range) io.ReadCloser

	uploads fakeUploads

	open    atomic.Int64 // bodies not closed yet
	opened  atomic.Int64
	waiting atomic.Int64
	reads   atomic.Int64 // of the log
	// left receives a value whenever Wait returns because its ctx ended.
	left chan job.ID
}

type fakeJob struct {
	tenant   string
	status   job.Status
	inputs   map[string][]byte
	outputs  map[string][]byte
	ended    chan struct{}
	detail   string
	last     string // the sheep that had it last
	progress *job.Progress
	usage    job.Usage
	// record, when set, changes what is known of the job in detail.
	record   func(*job.Record)
	attempts []job.Attempt
	timeline []job.Event
	position int
	waitsFor []job.ID
	expected *job.Estimate // start while it waits, and end while it runs
	limits   job.Limits
}

func newFake() *fake {
	return &fake{jobs: map[job.ID]*fakeJob{}, files: map[job.ID]map[string]string{}, bells: map[job.ID][]chan struct{}{}, left: make(chan job.ID, 100), bell: make(chan struct{})}
}

var (
	someModel = job.Model{Name: "emloop-test", Version: "test2"}
	enqueued  = time.Date(2026, 11, 22, 10, 8, 3, 942214000, time.UTC)
	modified  = time.Date(2026, 11, 22, 10, 8, 4, 500e6, time.UTC)
)

// add puts a job in the given state.
func (f *fake) add(id job.ID, state job.State) *fakeJob {
	j := &fakeJob{
		status: job.Status{State: state, Model: someModel, EnqueuedAt: enqueued},
		inputs: map[string][]byte{}, outputs: map[string][]byte{}, ended: make(chan struct{}),
	}
	if state != job.Queued {
		j.status.StartedAt = enqueued.Add(38792 * time.Microsecond)
	}
	if state == job.Failed {
		j.status.Failure = &job.Failure{Message: "ValueError: deliberate failure", Type: "<class 'ValueError'>", Traceback: "File /srv/runner.py"}
	}
	if state.Final() {
		j.status.FinishedAt = enqueued.Add(70517 * time.Microsecond)
		close(j.ended)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs[id] = j
	return j
}

func (f *fake) finish(id job.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[id]
	j.status.State = job.Done
	j.status.FinishedAt = enqueued.Add(time.Second)
	close(j.ended)
}

func (f *fake) find(id job.ID) (*fakeJob, error) {
	if f.down != nil {
		return nil, f.down
	}
	if j, ok := f.jobs[id]; ok {
		return j, nil
	}
	return nil, fmt.Errorf("look up the job: %w", &job.UnknownJob{ID: string(id)})
}

func (f *fake) Submit(_ context.Context, r job.Request) error {
	f.boom()
	if f.hold != nil {
		f.hold()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return f.down
	}
	if r.Sheep != "" && r.Sheep != "bare_sheep" {
		return &job.UnknownSheep{Name: r.Sheep}
	}
	_, known := f.jobs[r.ID]
	switch {
	case r.Payload == nil && !known && len(r.After) == 0:
		return &job.UnknownJob{ID: string(r.ID)}
	case r.Payload != nil && known:
		return fmt.Errorf("make the job's place: %w", job.ErrSubmitted)
	}
	f.submitted = append(f.submitted, r)
	if f.enters {
		f.mu.Unlock()
		f.enter(r)
		f.mu.Lock()
	}
	return nil
}

// enter makes a submitted job one that is there.
func (f *fake) enter(r job.Request) {
	j := f.add(r.ID, job.Queued)
	f.mu.Lock()
	defer f.mu.Unlock()
	j.tenant = r.Tenant
	j.status.Model = r.Model
	j.record = func(rec *job.Record) {
		rec.Labels, rec.Idempotency, rec.Priority, rec.Tenant, rec.After, rec.Group = r.Labels, r.Idempotency, r.Priority, r.Tenant, r.After, r.Group
	}
}

func (f *fake) SubmitFiles(ctx context.Context, r job.Request, files job.Files) error {
	f.boom()
	f.mu.Lock()
	_, known := f.jobs[r.ID]
	f.mu.Unlock()
	switch {
	case f.down != nil:
		return f.down
	case known:
		return job.ErrSubmitted
	}
	found := make(map[string]string)
	var names job.InputNames
	for {
		name, content, err := files()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = names.Add(name)
		}
		if err != nil {
			return fmt.Errorf("read a file: %w", err)
		}
		data, err := io.ReadAll(content)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		found[name] = string(data)
	}
	if f.store != nil {
		if err := f.store(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.submitted = append(f.submitted, r)
	f.files[r.ID] = found
	f.mu.Unlock()
	f.enter(r)
	return nil
}

func (f *fake) SubmitAll(ctx context.Context, rs []job.Request) error {
	if f.store != nil {
		if err := f.store(ctx); err != nil {
			return err
		}
	}
	for i, r := range rs {
		f.mu.Lock()
		_, known := f.jobs[r.ID]
		f.mu.Unlock()
		if known || r.Sheep != "" {
			err := error(job.ErrSubmitted)
			if r.Sheep != "" {
				err = &job.UnknownSheep{Name: r.Sheep}
			}
			return &job.ItemError{Index: i, Err: err}
		}
	}
	for _, r := range rs {
		f.mu.Lock()
		f.submitted = append(f.submitted, r)
		f.mu.Unlock()
		f.enter(r)
	}
	return f.down
}

func (f *fake) Group(_ context.Context, id, tenant string) (job.Group, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	g := job.Group{ID: id, Counts: map[job.State]int{}}
	for _, r := range f.submitted {
		if j := f.jobs[r.ID]; j != nil && r.Group == id && (tenant == "" || r.Tenant == tenant) {
			g.Counts[j.status.State]++
			g.Jobs = append(g.Jobs, job.View{Record: job.Record{ID: r.ID, Model: r.Model, State: j.status.State, Group: id, After: r.After, EnqueuedAt: enqueued}})
		}
	}
	if f.down != nil || len(g.Jobs) == 0 {
		return job.Group{}, cmp.Or(f.down, error(job.ErrNoGroup))
	}
	return g, nil
}

func (f *fake) CancelGroup(ctx context.Context, id, tenant string) error {
	g, err := f.Group(ctx, id, tenant)
	for _, v := range g.Jobs {
		f.change(v.ID, func(j *fakeJob) { j.status.State = job.Cancelled })
	}
	return err
}

func (f *fake) RetryGroup(ctx context.Context, id, tenant string, _ job.Trace) error {
	g, err := f.Group(ctx, id, tenant)
	for _, v := range g.Jobs {
		f.change(v.ID, func(j *fakeJob) { j.status.State = job.Queued })
	}
	return err
}

func (f *fake) Presign(_ context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error {
	if f.down != nil {
		return f.down
	}
	for i, file := range files {
		files[i].Address = fmt.Sprintf("https://storage.example/%s/%s/%s?valid=%s", id, dir, file.Name, valid)
	}
	return nil
}

func (f *fake) Watch(id job.ID) (<-chan struct{}, func()) {
	bell := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bells[id] = append(f.bells[id], bell)
	return bell, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.bells[id] = slices.DeleteFunc(f.bells[id], func(other chan struct{}) bool { return other == bell })
	}
}

// change changes a job and tells those who watch it.
func (f *fake) change(id job.ID, do func(*fakeJob)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f.jobs[id])
	f.ring(id)
}

func (f *fake) Job(_ context.Context, id job.ID) (job.Status, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return job.Status{}, err
	}
	return j.status, nil
}

func (f *fake) Wait(ctx context.Context, id job.ID) (job.Status, error) {
	f.boom()
	f.mu.Lock()
	j, err := f.find(id)
	f.mu.Unlock()
	if err != nil {
		return job.Status{}, err
	}
	f.waiting.Add(1)
	defer f.waiting.Add(-1)
	select {
	case <-j.ended:
		return f.Job(ctx, id)
	case <-ctx.Done():
		select {
		case f.left <- id:
		default:
		}
		return job.Status{}, fmt.Errorf("wait for job %s: %w", id, ctx.Err())
	}
}

func (f *fake) NotifyEnd(ctx context.Context, id job.ID, notify func(job.Status)) (job.Status, func(), error) {
	status, err := f.Job(ctx, id)
	if err != nil || status.State.Final() {
		return status, func() {}, err
	}
	waits, stop := context.WithCancel(context.WithoutCancel(ctx))
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if ended, err := f.Wait(waits, id); err == nil {
			notify(ended)
		}
	})
	return status, func() { stop(); waiting.Wait() }, nil
}

func (f *fake) Input(_ context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return nil, err
	}
	return f.file(j.inputs, name, part)
}

func (f *fake) Output(_ context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	switch {
	case err != nil:
		return nil, err
	case j.status.State == job.Failed:
		return nil, fmt.Errorf("result of job %s: %w", id, j.status.Failure)
	case !j.status.State.Final():
		return nil, job.ErrNotReady
	}
	return f.file(j.outputs, name, part)
}

func (f *fake) file(files map[string][]byte, name string, part *job.Range) (*job.File, error) {
	content, ok := files[name]
	if !ok {
		return nil, fmt.Errorf("open %q: %w", name, job.ErrNoFile)
	}
	size := int64(len(content))
	from, length := int64(0), size
	if part != nil {
		if from = part.Offset; from < 0 {
			from = max(0, size+from)
		}
		if from >= size {
			return nil, job.ErrRange
		}
		if length = size - from; part.Length >= 0 {
			length = min(length, part.Length)
		}
	}
	file := &job.File{Size: size, Offset: from, Length: length, ETag: `"v1"`, Modified: modified}
	var body io.ReadCloser = io.NopCloser(bytes.NewReader(content[from : from+length]))
	if f.body != nil {
		body = f.body(job.Range{Offset: from, Length: length})
	}
	f.open.Add(1)
	f.opened.Add(1)
	file.Body = &countedBody{ReadCloser: body, open: &f.open}
	return file, nil
}

type countedBody struct {
	io.ReadCloser
	open *atomic.Int64
	once sync.Once
}

func (b *countedBody) Close() error {
	b.once.Do(func() { b.open.Add(-1) })
	return b.ReadCloser.Close()
}

func (f *fake) Owner(_ context.Context, id job.ID) (string, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return "", err
	}
	return j.tenant, nil
}

func (f *fake) View(_ context.Context, id job.ID) (job.View, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return job.View{}, err
	}
	v := j.view(id)
	v.Attempts, v.Timeline, v.Position, v.WaitsFor = j.attempts, j.timeline, j.position, j.waitsFor
	switch j.status.State {
	case job.Queued:
		v.ExpectedStart = j.expected
	case job.Processing:
		v.ExpectedEnd = j.expected
	}
	return v, nil
}

func (f *fake) Jobs(_ context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, 0, f.down
	}
	f.queried = append(f.queried, q)
	ids := slices.Sorted(maps.Keys(f.jobs))
	if q.Newest {
		slices.Reverse(ids)
	}
	var page []job.View
	for at, id := range ids {
		v := f.jobs[id].view(id)
		if int64(at) < cursor || q.Tenant != "" && q.Tenant != f.jobs[id].tenant || len(q.States) > 0 && !slices.Contains(q.States, v.State) {
			continue
		}
		if len(page) == limit {
			return page, int64(at), nil
		}
		page = append(page, v)
	}
	return page, 0, nil
}

func (j *fakeJob) view(id job.ID) job.View {
	s := j.status
	v := job.View{Detail: j.detail, LastSheep: j.last, Progress: j.progress, Limits: j.limits, Record: job.Record{
		ID: id, Model: s.Model, State: s.State, Failure: s.Failure, EnqueuedAt: s.EnqueuedAt, StartedAt: s.StartedAt,
		FinishedAt: s.FinishedAt, Run: 1, Usage: j.usage,
	}}
	if j.record != nil {
		j.record(&v.Record)
	}
	return v
}

// happens adds an event to the log.
func (f *fake) happens(e job.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Cursor, e.At = job.Cursor(strconv.Itoa(len(f.log)+1)), enqueued
	if j := f.jobs[e.Job]; j != nil {
		e.Tenant, e.Model = j.tenant, j.status.Model
		if e.State != "" {
			j.status.State = e.State
		}
	}
	f.log = append(f.log, e)
	close(f.bell)
	f.bell = make(chan struct{})
	f.ring(e.Job)
}

func (f *fake) ring(id job.ID) {
	for _, bell := range f.bells[id] {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}

func (f *fake) Events(_ context.Context, after job.Cursor, id job.ID, tenant string, limit int) ([]job.Event, job.Cursor, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads.Add(1)
	if f.down != nil {
		return nil, "", f.down
	}
	at := f.pruned
	if after != "" {
		var err error
		if at, err = strconv.Atoi(string(after)); err != nil || at < f.pruned || at > len(f.log) {
			return nil, "", job.ErrEventsGone
		}
	}
	var events []job.Event
	for ; at < len(f.log) && len(events) < limit; at++ {
		if e := f.log[at]; (id == "" || e.Job == id) && (tenant == "" || e.Tenant == tenant) {
			events = append(events, e)
		}
	}
	return events, job.Cursor(strconv.Itoa(at)), nil
}

func (f *fake) NewestEvents(_ context.Context, tenant string, most int) ([]job.Event, job.Cursor, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads.Add(1)
	var events []job.Event
	for _, e := range f.log[f.pruned:] {
		if tenant == "" || e.Tenant == tenant {
			events = append(events, e)
		}
	}
	return events[max(0, len(events)-most):], job.Cursor(strconv.Itoa(len(f.log))), f.down
}

func (f *fake) EventsNow(context.Context) (job.Cursor, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	return job.Cursor(strconv.Itoa(len(f.log))), f.down
}

func (f *fake) EventsChanged() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bell
}

func (f *fake) Inputs(_ context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return f.list(id, func(j *fakeJob) (map[string][]byte, error) { return j.inputs, nil })
}

func (f *fake) Outputs(_ context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return f.list(id, func(j *fakeJob) (map[string][]byte, error) {
		switch {
		case j.status.State == job.Failed:
			return nil, j.status.Failure
		case !j.status.State.Final():
			return nil, job.ErrNotReady
		}
		return j.outputs, nil
	})
}

func (f *fake) list(id job.ID, files func(*fakeJob) (map[string][]byte, error)) iter.Seq2[job.FileInfo, error] {
	return func(yield func(job.FileInfo, error) bool) {
		f.boom()
		var found map[string][]byte
		f.mu.Lock()
		j, err := f.find(id)
		if err == nil {
			found, err = files(j)
		}
		f.mu.Unlock()
		if err != nil {
			yield(job.FileInfo{}, err)
		}
		for _, name := range slices.Sorted(maps.Keys(found)) {
			if !yield(job.FileInfo{Name: name, Size: int64(len(found[name])), ETag: `"v1"`, Modified: modified}, nil) {
				return
			}
		}
	}
}

func (f *fake) Retry(_ context.Context, id job.ID, _ job.Trace) error {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return err
	}
	if !j.status.State.Final() {
		return job.ErrNothingToRetry
	}
	f.retried = append(f.retried, id)
	return nil
}

func (f *fake) Explain(_ context.Context, id job.ID, tenant string) (job.Explanation, error) {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return job.Explanation{}, err
	}
	return job.Explanation{State: j.status.State, Summary: "It is " + string(j.status.State) + ".", Reasons: []string{"Asked by " + tenant + "."}}, nil
}

func (f *fake) Cancel(_ context.Context, id job.ID) error {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return err
	}
	if j.status.State.Final() {
		return job.ErrEnded
	}
	j.status.State = job.Cancelled
	close(j.ended)
	return nil
}

func (f *fake) Remove(_ context.Context, id job.ID) error {
	f.boom()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(id)
	if err != nil {
		return err
	}
	if !j.status.State.Final() {
		return job.ErrNotEnded
	}
	delete(f.jobs, id)
	if f.slow {
		return job.ErrRemovalContinues
	}
	return nil
}

func (f *fake) Sheep(context.Context) []job.Sheep {
	f.boom()
	return f.sheep
}

func (f *fake) Checks(context.Context) []job.Check {
	f.boom()
	return f.checks
}

func (f *fake) boom() {
	if f.panics != "" {
		panic(f.panics)
	}
}

func (f *fake) Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	f.boom()
	if f.logs == nil {
		return nil, &job.UnknownSheep{Name: sheep}
	}
	log, err := f.logs(ctx, sheep, q)
	if err != nil {
		return nil, err
	}
	f.open.Add(1)
	return &countedBody{ReadCloser: log, open: &f.open}, nil
}

func (f *fake) JobLogs(ctx context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error) {
	f.boom()
	f.mu.Lock()
	_, err := f.find(id)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if f.jobLogs == nil {
		return nil, job.ErrNoJobLog
	}
	log, err := f.jobLogs(ctx, id, q)
	if err != nil {
		return nil, err
	}
	f.open.Add(1)
	return &countedBody{ReadCloser: log, open: &f.open}, nil
}

func (f *fake) PullModel(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	f.boom()
	if f.pull == nil {
		return job.ErrNoModels
	}
	return f.pull(ctx, o, report)
}

func (f *fake) OrderSheep(ctx context.Context, sheep string, o job.Order) error {
	f.boom()
	if f.order == nil {
		return &job.UnknownSheep{Name: sheep}
	}
	return f.order(ctx, sheep, o)
}

func (f *fake) Models(context.Context) (job.KeptModels, error) {
	f.boom()
	return job.KeptModels{Models: f.models, Unanswered: f.unanswered}, f.down
}

func (f *fake) Usual(_ context.Context, m job.Model) (job.Usual, bool, error) {
	u, ok := f.usual[m]
	return u, ok, nil
}

func (f *fake) RemoveModel(_ context.Context, m job.Model, node string) error {
	f.boom()
	if f.down != nil {
		return f.down
	}
	f.removed, f.removedOf = append(f.removed, m), node
	return nil
}
