package api

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// flockServer serves streams of all that a page shows of the flock.
type flockServer struct {
	answers
	views
	service interface {
		EventService
		sheepLister
		usualTimes
		View(ctx context.Context, id job.ID) (job.View, error)
		Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error)
		Explain(ctx context.Context, id job.ID, tenant string) (job.Explanation, error)
	}
	gpus  func(ctx context.Context, node string) (job.GPUs, error)
	flock flockWatch
}

const (
	// flockEvery is how often a stream looks for changes that no event announces, such
	// as the progress of a pull.
	flockEvery = time.Second
	// flockPause is the shortest time between two looks.
	flockPause = 250 * time.Millisecond
	// flockAlive is how often a stream shows that it lives.
	flockAlive = 5 * time.Second
	// flockPatience bounds one look.
	flockPatience = 5 * time.Second
	// fleetEvery is how often the GPUs of the nodes of a fleet are looked at.
	fleetEvery = 2*time.Second - flockPause
	// flockGroups bounds the kinds of waiting jobs that are told apart.
	flockGroups = 30
	// flockListed bounds the jobs that are read of the queue, and of those under way.
	flockListed = 500
	// flockHead is how many waiting jobs are told with their reasons.
	flockHead = 12
	// flockKept is how many batches of events are kept for streams that are slower than
	// others.
	flockKept = 32
)

// flockWatch shares what streams of the flock show. All streams of one tenant, and all
// of those who see everything, share one view: the first that finds it outdated refreshes
// it for the others, so that a hundred pages cost no more than one, apart from the
// writing. Without a stream nothing is queried.
type flockWatch struct {
	mu    sync.Mutex
	views map[string]*flockView // by tenant; empty for those who see everything
}

// join returns the tenant's view, until leave is called.
func (w *flockWatch) join(tenant string) (view *flockView, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.views == nil {
		w.views = make(map[string]*flockView)
	}
	view = w.views[tenant]
	if view == nil {
		view = &flockView{tenant: tenant}
		w.views[tenant] = view
	}
	view.streams++
	return view, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if view.streams--; view.streams == 0 {
			delete(w.views, tenant)
		}
	}
}

// flockView is what the streams of one tenant show.
type flockView struct {
	tenant  string
	streams int // guarded by flockWatch.mu

	mu      sync.Mutex
	at      time.Time       // of the last look
	changed <-chan struct{} // closed when there may be an event since
	cursor  job.Cursor      // of the events so far; empty before the first look
	queue   FlockQueue
	queueAt time.Time
	gpusAt  time.Time
	// expected are the starts that the queue shows.
	expected map[job.ID]job.Estimate
	serial   int64 // of the latest frame

	flock, gpus frame
	events      []frame // the latest batches
}

// frame is an event of the stream, as it is sent. The zero frame is none.
type frame struct {
	serial int64
	data   []byte // JSON
}

// look refreshes the view where it is outdated, and returns the frames after seen as the
// text to send, and the serial number to continue from.
func (v *flockView) look(ctx context.Context, s *flockServer, seen int64) (text []byte, serial int64, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := time.Since(v.at); old >= flockEvery-flockPause || old >= flockPause && isClosed(v.changed) {
		if err := v.refresh(ctx, s); err != nil {
			return nil, 0, err
		}
	}
	var out bytes.Buffer
	write := func(name string, f frame) {
		if f.serial > seen {
			fmt.Fprintf(&out, "event: %s\ndata: %s\n\n", name, f.data)
		}
	}
	write("flock", v.flock)
	write("gpus", v.gpus)
	for _, f := range v.events {
		if seen > 0 { // those from before the stream began are none of its
			write("jobs", f)
		}
	}
	return out.Bytes(), v.serial, nil
}

// latest is the flock as JSON, as the last look found it.
func (v *flockView) latest() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.flock.data
}

// isClosed reports whether the channel is closed; one that is nil counts as closed.
func isClosed(c <-chan struct{}) bool {
	if c == nil {
		return true
	}
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// refresh looks at everything again. What it finds is for other streams, too, so that
// it does not end with the one whose ctx this is.
func (v *flockView) refresh(ctx context.Context, s *flockServer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flockPatience)
	defer cancel()
	v.changed = s.service.EventsChanged() // before the log is read, so that no event falls between
	happened, troubles := v.readEvents(ctx, s)
	sheep := sheepFor(ctx, s.service, v.tenant)
	flock := Flock{Sheep: make([]FlockSheep, len(sheep))}
	started, err := s.underWay(ctx, v.tenant, sheep)
	troubles = errors.Join(troubles, err)
	for i, one := range sheep {
		flock.Sheep[i] = FlockSheep{
			Name: one.Name, Node: orNull(one.Node), Type: one.Type, Running: one.Running, Model: modelOf(one), Job: orNull(string(one.Job)), Detail: orNull(one.Detail),
			Condition: conditionOf(one), Progress: shownProgress(one.Progress),
		}
		if one.Pull != nil {
			flock.Sheep[i].Pull = new(progress(*one.Pull))
		}
		flock.Sheep[i].RunningSince, flock.Sheep[i].TurnEndsAt = job.FormatTime(one.RunningSince), job.FormatTime(one.TurnEnds)
		of := one.Model
		if under, ok := started[one.Job]; ok && one.Job != "" {
			flock.Sheep[i].StartedAt, of = job.FormatTime(under.StartedAt), under.Model
		}
		if !of.IsZero() {
			usual, err := usualOf(ctx, s.service, of)
			flock.Sheep[i].Usual, troubles = usual, errors.Join(troubles, err)
		}
	}
	slices.SortFunc(flock.Sheep, func(a, b FlockSheep) int { return cmp.Compare(a.Name, b.Name) })
	// Of the queue, reasons change with the sheep, too, and cost more to find.
	if happened || time.Since(v.queueAt) >= 2*flockEvery {
		if queue, err := v.readQueue(ctx, s); err == nil {
			v.queue, v.queueAt = queue, time.Now()
		} else {
			troubles = errors.Join(troubles, err)
		}
	}
	flock.Queue = v.queue
	if flock.Queue.Head == nil {
		none := []QueueGroup{}
		flock.Queue = FlockQueue{Head: []QueuedJob{}, Models: none, Priorities: none, Tenants: none, Labels: none}
	}
	if troubles != nil {
		_, message := classify(troubles)
		flock.Trouble = &message
	}
	if err := v.put(&v.flock, flock); err != nil {
		return err
	}
	if v.tenant == "" {
		if err := v.readGPUs(ctx, s, sheep); err != nil {
			return err
		}
	}
	v.at = time.Now()
	return nil
}

// readGPUs looks at the GPUs of the nodes that have the sheep, those of others than this
// one less often. A node that does not answer is told of as trouble.
func (v *flockView) readGPUs(ctx context.Context, s *flockServer, sheep []job.Sheep) error {
	var nodes []string
	for _, one := range sheep {
		if !slices.Contains(nodes, one.Node) {
			nodes = append(nodes, one.Node)
		}
	}
	switch {
	case len(nodes) == 0:
		nodes = []string{""}
	case nodes[0] != "" && time.Since(v.gpusAt) < fleetEvery:
		return nil
	}
	slices.Sort(nodes)
	answers, errs := make([]job.GPUs, len(nodes)), make([]error, len(nodes))
	var asking sync.WaitGroup
	for i, node := range nodes {
		asking.Go(func() { answers[i], errs[i] = s.gpus(ctx, node) })
	}
	asking.Wait()
	all := GPUList{Gpus: []GPU{}, Others: []OtherDevice{}}
	var troubles []string
	for i, node := range nodes {
		one := shownGPUs(answers[i])
		if errs[i] != nil {
			_, message := classify(errs[i])
			one.Trouble = &message
		}
		if one.Trouble != nil {
			troubles = append(troubles, *one.Trouble)
		}
		for k := range one.Gpus {
			if one.Gpus[k].Node = orNull(node); node != "" {
				for u := range one.Gpus[k].Sheep { // as the sheep are called in a fleet
					one.Gpus[k].Sheep[u].Name = node + "/" + one.Gpus[k].Sheep[u].Name
				}
			}
		}
		all.Gpus, all.Others = append(all.Gpus, one.Gpus...), append(all.Others, one.Others...)
		all.Driver, all.Cuda = cmp.Or(all.Driver, one.Driver), cmp.Or(all.Cuda, one.Cuda)
	}
	all.Trouble = orNull(strings.Join(troubles, "; "))
	v.gpusAt = time.Now()
	return v.put(&v.gpus, all)
}

// readEvents adds the events since the last look. happened reports whether there were
// any.
func (v *flockView) readEvents(ctx context.Context, s *flockServer) (happened bool, err error) {
	if v.cursor == "" {
		v.cursor, err = s.service.EventsNow(ctx)
		return true, err
	}
	events, next, err := s.service.Events(ctx, v.cursor, "", v.tenant, eventBatch)
	skipped := len(events) == eventBatch
	if errors.Is(err, job.ErrEventsGone) {
		skipped, err = true, nil
	}
	if err == nil && skipped {
		next, err = s.service.EventsNow(ctx)
	}
	if err != nil {
		return false, err
	}
	v.cursor = next
	if len(events) == 0 && !skipped {
		return false, nil
	}
	shown := FlockEvents{Events: make([]Event, len(events)), Skipped: skipped}
	for i, e := range events {
		shown.Events[i] = s.shownEvent(e)
		shown.Events[i].Id = new(string(e.Cursor))
	}
	var batch frame
	if err := v.put(&batch, shown); err != nil {
		return true, err
	}
	v.events = append(v.events, batch)
	if excess := len(v.events) - flockKept; excess > 0 {
		v.events = slices.Delete(v.events, 0, excess)
	}
	return true, nil
}

// put makes value the frame's, with a serial number of its own if it is another than
// before.
func (v *flockView) put(f *frame, value any) error {
	data, err := job.JSON(value)
	if err != nil {
		return fmt.Errorf("write the flock as JSON: %w", err)
	}
	if f.serial == 0 || !bytes.Equal(data, f.data) {
		v.serial++
		*f = frame{serial: v.serial, data: data}
	}
	return nil
}

// underWay are the jobs that sheep have.
func (s *flockServer) underWay(ctx context.Context, tenant string, sheep []job.Sheep) (map[job.ID]job.View, error) {
	if !slices.ContainsFunc(sheep, func(one job.Sheep) bool { return one.Job != "" }) {
		return nil, nil
	}
	views, _, err := s.service.Jobs(ctx, job.Query{States: []job.State{job.Processing}, Tenant: tenant}, 0, flockListed)
	if err != nil {
		return nil, err
	}
	started := make(map[job.ID]job.View, len(views))
	for _, view := range views {
		started[view.ID] = view
	}
	return started, nil
}

// readQueue reads the queue as the tenant sees it.
func (v *flockView) readQueue(ctx context.Context, s *flockServer) (FlockQueue, error) {
	tenant := v.tenant
	expected := make(map[job.ID]job.Estimate)
	views, next, err := s.service.Jobs(ctx, job.Query{States: []job.State{job.Queued}, Tenant: tenant}, 0, flockListed)
	if err != nil {
		return FlockQueue{}, err
	}
	queue := FlockQueue{Total: len(views), More: next != 0, Head: []QueuedJob{}}
	queue.Models, queue.Priorities, queue.Tenants, queue.Labels = groupsOf(views, tenant == "")
	now := job.Now()
	slices.SortStableFunc(views, func(a, b job.View) int {
		if later := a.Blocked || a.NotBefore.After(now); later != (b.Blocked || b.NotBefore.After(now)) {
			if later {
				return 1
			}
			return -1
		}
		return cmp.Compare(b.Priority, a.Priority) // within a priority they come by age
	})
	for _, view := range views[:min(len(views), flockHead)] {
		queued := QueuedJob{
			JobId: string(view.ID), Model: Model{Name: &view.Model.Name, Version: &view.Model.Version}, Priority: view.Priority,
			SheepId: orNull(job.ParseAddress(view.Record.Sheep).Who()), Labels: s.shown(view).Labels,
			EnqueuedAt: job.FormatTime(view.EnqueuedAt), NotBefore: job.FormatTime(view.NotBefore),
		}
		detailed, err := s.service.View(ctx, view.ID)
		if err == nil && detailed.State != job.Queued {
			continue // a sheep has it now
		}
		if err == nil {
			if detailed.Position > 0 {
				queued.Position = &detailed.Position
			}
			queued.ExpectedStart = shownEstimate(steady(v.expected[view.ID], detailed.ExpectedStart, now))
			if detailed.ExpectedStart != nil {
				expected[view.ID] = *detailed.ExpectedStart
			}
			var why job.Explanation
			if why, err = s.service.Explain(ctx, view.ID, tenant); err == nil {
				queued.Reason, queued.Explanation = orNull(why.Summary), orNull(why.String())
			}
		}
		if _, gone := asError[*job.UnknownJob](err); err != nil && !gone {
			return FlockQueue{}, err
		} else if gone {
			continue
		}
		queue.Head = append(queue.Head, queued)
	}
	v.expected = expected
	return queue, nil
}

// groupsOf counts the jobs by model, priority, tenant and label; by tenant only for those
// who see all.
func groupsOf(views []job.View, whole bool) (models, priorities, tenants, labels []QueueGroup) {
	by := make([]map[string]int, 4)
	for i := range by {
		by[i] = make(map[string]int)
	}
	for _, view := range views {
		by[0][view.Model.String()]++
		by[1][strconv.Itoa(view.Priority)]++
		if whole && view.Tenant != "" {
			by[2][view.Tenant]++
		}
		for key, value := range view.Labels {
			by[3][key+"="+value]++
		}
	}
	most := func(counts map[string]int, order func(a, b QueueGroup) int) []QueueGroup {
		groups := make([]QueueGroup, 0, len(counts))
		for name, jobs := range counts {
			groups = append(groups, QueueGroup{Name: name, Jobs: jobs})
		}
		slices.SortFunc(groups, order)
		return groups[:min(len(groups), flockGroups)]
	}
	byJobs := func(a, b QueueGroup) int { return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Name, b.Name)) }
	byPriority := func(a, b QueueGroup) int {
		p, _ := strconv.Atoi(a.Name)
		q, _ := strconv.Atoi(b.Name)
		return cmp.Compare(q, p)
	}
	return most(by[0], byJobs), most(by[1], byPriority), most(by[2], byJobs), most(by[3], byJobs)
}

// steady is what is shown as a job's expected start: what was shown before, while what is
// known now says about the same, so that nothing is sent for differences that mean nothing.
func steady(shown job.Estimate, known *job.Estimate, now time.Time) *job.Estimate {
	if known == nil || shown.Likely.Before(now) {
		return known
	}
	enough := max(2*time.Second, known.Likely.Sub(now)/10)
	if known.Likely.Sub(shown.Likely).Abs() > enough {
		return known
	}
	*known = shown
	return known
}

// FollowFlock answers GET /flock.
func (s *flockServer) FollowFlock(w http.ResponseWriter, r *http.Request, params FollowFlockParams) {
	view, leave := s.flock.join(access.From(r.Context()).Tenant)
	defer leave()
	text, seen, err := view.look(r.Context(), s, 0)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if params.Follow != nil && (*params.Follow == "false" || *params.Follow == "0") {
		h.Set("Content-Type", jsonType)
		_, _ = w.Write(view.latest()) // a client that has left cannot be told
		return
	}
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no") // proxies that know it pass events on as they come
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	unbounded(w)
	to := &steadyWriter{to: w, control: http.NewResponseController(w)}
	if _, err := fmt.Fprintf(to, "retry: %d\n\n", reconnect.Milliseconds()); err != nil {
		return
	}
	if err := s.followFlock(r.Context(), to, view, text, seen); err != nil && to.err == nil && r.Context().Err() == nil {
		s.log.WarnContext(r.Context(), "flock stream ended", "request", requestID(r.Context()), "error", err)
	}
	_ = to.control.SetWriteDeadline(time.Time{})
}

// followFlock sends what changes until the client leaves, or an error.
func (s *flockServer) followFlock(ctx context.Context, to *steadyWriter, view *flockView, text []byte, seen int64) (err error) {
	alive := time.NewTicker(flockAlive)
	defer alive.Stop()
	look := time.NewTicker(flockEvery)
	defer look.Stop()
	for {
		if len(text) > 0 {
			if _, err := to.Write(text); err != nil {
				return err
			}
			if err := to.control.Flush(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(flockPause): // events that come together are sent together
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-view.wakes(seen):
		case <-look.C:
		case <-alive.C:
			if _, err := io.WriteString(to, "event: alive\ndata: {}\n\n"); err != nil {
				return err
			}
			if err := to.control.Flush(); err != nil {
				return err
			}
		}
		if text, seen, err = view.look(ctx, s, seen); err != nil {
			return err
		}
	}
}

// wakes is closed when there may be more than what a stream has seen.
func (v *flockView) wakes(seen int64) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.serial > seen {
		now := make(chan struct{})
		close(now)
		return now
	}
	return v.changed
}
