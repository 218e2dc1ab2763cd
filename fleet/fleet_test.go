package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/fleet"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "between us"

// box is what one machine knows.
type box struct {
	sheep  []job.Sheep
	gpus   job.GPUs
	broken error          // why a log breaks off
	hold   chan struct{}  // where not nil, a log goes on until it is closed
	asked  []job.LogQuery // for logs
	orders []job.Order    // that a sheep took

	models  []job.KeptModel
	ill     error // of all that concerns models
	changes []string
}

func (b *box) Sheep(context.Context) []job.Sheep { return b.sheep }
func (b *box) GPUs(context.Context) job.GPUs     { return b.gpus }

func (b *box) Logs(_ context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
	b.asked = append(b.asked, q)
	switch sheep {
	case "odd /name":
		return b.log("log of " + sheep), nil
	case "silent":
		return nil, job.ErrNoLog
	case "faulty":
		return nil, errors.New("a fault")
	}
	return nil, &job.UnknownSheep{Name: sheep}
}

// OrderSheep answers what the sheep's name says.
func (b *box) OrderSheep(ctx context.Context, sheep string, o job.Order) error {
	switch sheep {
	case "well":
		b.orders = append(b.orders, o)
		return nil
	case "long":
		<-ctx.Done()
		return ctx.Err()
	case "faulty":
		return errors.New("a fault")
	case "draining":
		return job.ErrDraining
	case "drained":
		return &job.SheepState{Sheep: sheep, Is: job.SheepDrained}
	case "invalid":
		return &job.Invalid{Field: "model", Problem: "is none"}
	case "untrusted":
		return &job.Untrusted{Model: o.Model, Reason: "is not trusted"}
	case "missing":
		return &job.ModelError{Problem: "there is no such model", Class: errdefs.ErrNotFound}
	case "ill":
		return &job.ModelError{Problem: "it cannot be", Class: errdefs.ErrInternal}
	}
	return &job.UnknownSheep{Name: sheep}
}

func (b *box) AttemptLog(_ context.Context, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error) {
	b.asked = append(b.asked, q)
	if id != "job-1" || run != 2 || attempt != 3 {
		return nil, job.ErrNoJobLog
	}
	return b.log("log of job-1"), nil
}

func (b *box) log(text string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, text)
		if b.hold != nil {
			<-b.hold
			_, _ = io.WriteString(w, ", and more")
		}
		w.CloseWithError(b.broken)
	}()
	return r
}

// rest is what a node serves beside.
var rest = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })

// serve is the address of a node.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// gone is the address of a node that does not answer.
func gone(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t))
}

var discard = slog.New(slog.DiscardHandler)

// newFleet is node a's, which knows the nodes.
func newFleet(t *testing.T, secret string, nodes ...fleet.Node) *fleet.Fleet {
	t.Helper()
	f := fleet.New(fleet.Config{
		Self: "a", Secret: secret, Timeout: 10 * time.Second, Log: discard,
		Directory: func(context.Context) ([]fleet.Node, error) { return nodes, nil },
	})
	t.Cleanup(f.Close)
	return f
}

func TestAnswers(t *testing.T) {
	b := &box{
		sheep: []job.Sheep{{Name: "s", Type: "bare", Running: true, Model: job.Model{Name: "m", Version: "v"}, Job: "job-1", Progress: &job.Progress{}}},
		gpus:  job.GPUs{Driver: "550", GPUs: []job.GPU{{UUID: "GPU-1", Health: job.Well}}},
	}
	f := newFleet(t, secret, fleet.Node{Name: "b", Alive: true, Address: serve(t, fleet.Handler(b, secret, rest, discard)) + "/"})
	if got, err := f.Sheep(t.Context(), "b"); err != nil || !reflect.DeepEqual(got, b.sheep) {
		t.Errorf("Sheep = %+v, %v", got, err)
	}
	if got, err := f.GPUs(t.Context(), "b"); err != nil || !reflect.DeepEqual(got, b.gpus) {
		t.Errorf("GPUs = %+v, %v", got, err)
	}
	read := func(log io.ReadCloser, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		text, err := io.ReadAll(log)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	q := job.LogQuery{Tail: 7, Follow: true}
	if got := read(f.Logs(t.Context(), "b", "odd /name", q)); got != "log of odd /name" {
		t.Errorf("Logs = %q", got)
	}
	if got := read(f.AttemptLog(t.Context(), "b", "job-1", 2, 3, job.LogQuery{Tail: -1})); got != "log of job-1" {
		t.Errorf("AttemptLog = %q", got)
	}
	if want := []job.LogQuery{q, {Tail: -1}}; !reflect.DeepEqual(b.asked, want) {
		t.Errorf("logs were asked for with %+v, want %+v", b.asked, want)
	}
	if _, err := f.AttemptLog(t.Context(), "b", "job-2", 1, 1, q); !errors.Is(err, job.ErrNoJobLog) {
		t.Errorf("AttemptLog of a job that is not kept: %v", err)
	}
	if _, err := f.Logs(t.Context(), "b", "silent", q); !errors.Is(err, job.ErrNoLog) {
		t.Errorf("Logs of a sheep without one: %v", err)
	}
	if unknown := new(job.UnknownSheep); true {
		if _, err := f.Logs(t.Context(), "b", "wolf", q); !errors.As(err, &unknown) || unknown.Name != "wolf" {
			t.Errorf("Logs of an unknown sheep: %v", err)
		}
	}
	if _, err := f.Logs(t.Context(), "b", "faulty", q); !errors.As(err, new(*job.Unavailable)) {
		t.Errorf("Logs after a fault: %v", err)
	}
}

// What is written while a log is followed comes at once, and one that breaks off does
// not look like one that has ended.
func TestFollow(t *testing.T) {
	b := &box{hold: make(chan struct{}), broken: errors.New("a broken disk")}
	f := newFleet(t, secret, fleet.Node{Name: "b", Alive: true, Address: serve(t, fleet.Handler(b, secret, rest, discard))})
	log, err := f.AttemptLog(t.Context(), "b", "job-1", 2, 3, job.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	first := make([]byte, len("log of job-1"))
	if _, err := io.ReadFull(log, first); err != nil || string(first) != "log of job-1" {
		t.Errorf("the log begins with %q, %v", first, err)
	}
	close(b.hold)
	if more, err := io.ReadAll(log); err == nil || string(more) != ", and more" {
		t.Errorf("the log goes on with %q, %v", more, err)
	}
}

// What came of an order comes back as it was, and errors name the sheep as it was asked
// for.
func TestOrders(t *testing.T) {
	there := new(box)
	f := newFleet(t, secret, fleet.Node{Name: "b", Alive: true, Address: serve(t, fleet.Handler(there, secret, rest, discard))})
	here := new(box)
	view := fleet.NewView(here, f, placement{})
	order := job.Order{Do: job.Load, Drain: time.Minute, Model: job.Model{Name: "m", Version: "v1"}}
	for _, id := range []string{"well", "a/well", "b/well"} {
		if err := view.OrderSheep(t.Context(), id, order); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if want := []job.Order{order, order}; !reflect.DeepEqual(here.orders, want) || !reflect.DeepEqual(there.orders, want[:1]) {
		t.Errorf("the orders are %+v here, %+v there", here.orders, there.orders)
	}
	for id, want := range map[string]error{
		"b/wolf": &job.UnknownSheep{Name: "b/wolf"}, "c/wolf": &job.UnknownSheep{Name: "c/wolf"}, "wolf": &job.UnknownSheep{Name: "wolf"},
		"drained": &job.SheepState{Sheep: "drained", Is: job.SheepDrained}, "b/drained": &job.SheepState{Sheep: "b/drained", Is: job.SheepDrained},
		"b/draining": job.ErrDraining, "b/invalid": &job.Invalid{Field: "model", Problem: "is none"},
		"b/untrusted": &job.Untrusted{Model: order.Model, Reason: "is not trusted"},
		"b/missing":   &job.ModelError{Problem: "there is no such model", Class: errdefs.ErrNotFound},
		"b/ill":       &job.ModelError{Problem: "it cannot be", Class: errdefs.ErrInternal},
	} {
		if err := view.OrderSheep(t.Context(), id, order); !reflect.DeepEqual(err, want) {
			t.Errorf("%s: %#v, want %#v", id, err, want)
		}
	}
	var away *job.Unavailable
	if err := view.OrderSheep(t.Context(), "b/faulty", order); !errors.As(err, &away) || !strings.Contains(away.Problem, "its log says why") {
		t.Errorf("a fault of the other node: %v", err)
	}
	// An order may take longer than a node has to begin its answer, and ends with whoever
	// gave it.
	ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer leave()
	if err := view.OrderSheep(ctx, "b/long", order); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an order that was given up: %v", err)
	}
}

// A node that cannot be asked is named, with the reason.
func TestUnreachable(t *testing.T) {
	answers := serve(t, fleet.Handler(new(box), secret, rest, discard))
	nodes := []fleet.Node{
		{Name: "down", Address: answers},
		{Name: "silent", Alive: true},
		{Name: "gone", Alive: true, Address: gone(t)},
		{Name: "old", Alive: true, Address: serve(t, rest)},
		{Name: "moved", Alive: true, Address: serve(t, http.RedirectHandler(answers, http.StatusFound))},
		{Name: "switched", Alive: true, Address: serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wool\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		}))},
		{Name: "garbled", Alive: true, Address: serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `[{"Name":`) }))},
		{Name: "other", Alive: true, Address: serve(t, fleet.Handler(new(box), "another secret", rest, discard))},
	}
	f := newFleet(t, secret, nodes...)
	for node, want := range map[string]string{
		"down": "is not up", "silent": "has not announced its address", "gone": "does not answer", "old": "answers with status 418",
		"moved": "answers with status 302", "switched": "answers with status 101", "garbled": "breaks off its answer", "other": "does not know this node's secret",
	} {
		_, err := f.Sheep(t.Context(), node)
		var away *job.Unavailable
		if !errors.As(err, &away) || away.Service != "node "+node || !strings.Contains(away.Problem, want) {
			t.Errorf("asking %s: %v, want %q", node, err, want)
		}
	}
	if _, err := f.GPUs(t.Context(), "nobody"); !errors.As(err, new(*job.UnknownNode)) {
		t.Errorf("asking a node that there is not: %v", err)
	}
	for _, node := range []string{"down", "nobody"} {
		if _, err := f.AttemptLog(t.Context(), node, "job-1", 2, 3, job.LogQuery{}); !errors.Is(err, job.ErrNoJobLog) {
			t.Errorf("the log of an attempt on %s: %v", node, err)
		}
	}
	if _, err := newFleet(t, "", nodes...).Sheep(t.Context(), "gone"); !errors.As(err, new(*job.Unavailable)) || !strings.Contains(err.Error(), "fleet.secret_file") {
		t.Errorf("asking without a secret: %v", err)
	}
}

// Without its beginning, an answer is waited for only so long.
func TestSilence(t *testing.T) {
	over := make(chan struct{})
	address := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
	defer close(over)
	f := fleet.New(fleet.Config{
		Self: "a", Secret: secret, Timeout: 20 * time.Millisecond, Log: discard,
		Directory: func(context.Context) ([]fleet.Node, error) {
			return []fleet.Node{{Name: "b", Alive: true, Address: address}}, nil
		},
	})
	defer f.Close()
	if _, err := f.Sheep(t.Context(), "b"); !errors.As(err, new(*job.Unavailable)) {
		t.Errorf("Sheep of a node that is silent: %v", err)
	}
	if _, err := f.Logs(t.Context(), "b", "s", job.LogQuery{}); !errors.As(err, new(*job.Unavailable)) {
		t.Errorf("Logs of a node that is silent: %v", err)
	}
}

func TestSecret(t *testing.T) {
	handler := fleet.Handler(&box{sheep: []job.Sheep{{Name: "s"}}}, secret, rest, discard)
	for _, c := range []struct {
		path, authorization string
		want                int
	}{
		{"/fleet/v1/sheep", "Bearer " + secret, http.StatusOK},
		{"/fleet/v1/sheep", "", http.StatusUnauthorized},
		{"/fleet/v1/sheep", secret, http.StatusUnauthorized},
		{"/fleet/v1/sheep", "Bearer ", http.StatusUnauthorized},
		{"/fleet/v1/sheep", "Bearer " + secret + "x", http.StatusUnauthorized},
		{"/fleet/v1/wool", "Bearer " + secret, http.StatusNotFound},
		{"/fleet/v1/wool", "", http.StatusUnauthorized},
		{"/sheep", "", http.StatusTeapot},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.Header.Set("Authorization", c.authorization)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s with %q answers %d, want %d", c.path, c.authorization, w.Code, c.want)
		}
	}
	w := httptest.NewRecorder()
	fleet.Handler(new(box), "", rest, discard).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/fleet/v1/sheep", nil))
	if w.Code != http.StatusTeapot {
		t.Errorf("a node without a secret answers %d", w.Code)
	}
}

func TestView(t *testing.T) {
	own := &box{sheep: []job.Sheep{{Name: "z", Detail: "busy"}}, gpus: job.GPUs{Driver: "a's"}}
	b := &box{sheep: []job.Sheep{{Name: "s", Running: true}}, gpus: job.GPUs{Driver: "b's"}}
	f := newFleet(t, secret,
		fleet.Node{Name: "a", Alive: true},
		fleet.Node{Name: "b", Alive: true, Address: serve(t, fleet.Handler(b, secret, rest, discard)), Sheep: []job.Sheep{{Name: "s"}}},
		fleet.Node{Name: "c", Alive: true, Address: gone(t), Sheep: []job.Sheep{{Name: "t", Type: "bare"}}, Labels: job.Labels{"gpu": "a100"}},
		fleet.Node{Name: "d", Sheep: []job.Sheep{{Name: "u"}}})
	v := fleet.NewView(own, f, placement{})
	want := []job.Sheep{{Name: "a/z", Node: "a", Detail: "busy"}, {Name: "b/s", Node: "b", Running: true}, {Name: "c/t", Node: "c", Type: "bare", Detail: "node c does not answer"}}
	if got := v.Sheep(t.Context()); !reflect.DeepEqual(got, want) {
		t.Errorf("Sheep = %+v, want %+v", got, want)
	}
	for to, want := range map[string]string{
		"": "b c", "s": "b", "t": "c", "b/s": "b", "c/s": "", "@gpu=a100": "c", "s@gpu=a100": "", "t@gpu=a100": "c", "@gpu=h100": "", "u": "", "z": "", "wolf": "",
	} {
		if got, err := f.Answering(t.Context(), job.ParseAddress(to)); err != nil || strings.Join(got, " ") != want {
			t.Errorf("Answering(%q) = %v, %v", to, got, err)
		}
	}
	for node, want := range map[string]string{"": "a's", "a": "a's", "b": "b's"} {
		if got, err := v.GPUs(t.Context(), node); err != nil || got.Driver != want {
			t.Errorf("GPUs of %q = %+v, %v", node, got, err)
		}
	}
	for id, want := range map[string]string{"wolf": "wolf", "a/wolf": "wolf", "b/wolf": "b/wolf", "nobody/s": "nobody/s"} {
		var unknown *job.UnknownSheep
		if _, err := v.Logs(t.Context(), id, job.LogQuery{}); !errors.As(err, &unknown) || unknown.Name != want {
			t.Errorf("Logs of %s: %v", id, err)
		}
	}
	log, err := v.Logs(t.Context(), "b/odd /name", job.LogQuery{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(log); err != nil || string(text) != "log of odd /name" {
		t.Errorf("the log is %q, %v", text, err)
	}
	log.Close()
}
