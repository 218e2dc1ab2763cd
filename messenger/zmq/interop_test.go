package zmq_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hang bounds what must happen soon but not at any certain time.
const hang = 2 * time.Minute

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	return ctx
}

// pyRunner starts testdata/runner.py and returns its process once it is
// bound, or at once when it binds late.
func pyRunner(t testing.TB, port int, args ...string) *exec.Cmd {
	t.Helper()
	python := testenv.Python(t, "zmq", "python3-zmq")
	cmd := exec.Command(python, append([]string{"testdata/runner.py", strconv.Itoa(port)}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if len(args) > 0 && args[0] == "--late" {
		return cmd
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("runner.py did not bind: %q, %v", line, err)
	}
	return cmd
}

func dial(t testing.TB, endpoint string) *zmq.Conn {
	t.Helper()
	conn, err := zmq.Dial(within(t), zmq.Config{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func tcp(port int) string { return fmt.Sprintf("tcp://127.0.0.1:%d", port) }

func roundTrip(t testing.TB, conn *zmq.Conn, body []byte) {
	t.Helper()
	ctx := within(t)
	if err := conn.Send(ctx, body); err != nil {
		t.Fatal(err)
	}
	got, err := conn.Recv(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, body) {
		t.Fatalf("sent %d bytes, got other %d back", len(body), len(got))
	}
}

func ended(t testing.TB, conn *zmq.Conn) error {
	t.Helper()
	select {
	case <-conn.Done():
	case <-time.After(hang):
		t.Fatal("the end of the connection was not noticed")
	}
	if err := conn.Err(); !errors.Is(err, messenger.ErrClosed) {
		t.Fatalf("ended with %v, expected messenger.ErrClosed", err)
	}
	return conn.Err()
}

func TestDealerWithLibzmqRouter(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port)
	conn := dial(t, tcp(port))
	for _, size := range []int{0, 1, 255, 256, 300, 64 << 10, messenger.MaxMessage} {
		roundTrip(t, conn, bytes.Repeat([]byte("a"), size))
	}
	if err := conn.Send(within(t), make([]byte, messenger.MaxMessage+1)); err == nil {
		t.Fatal("a message beyond the limit was sent")
	}
	roundTrip(t, conn, []byte("still well"))
}

func TestDialWaitsForBind(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port, "--late", "0.5")
	roundTrip(t, dial(t, tcp(port)), []byte("hello"))
}

func TestDialEndsWithItsContext(t *testing.T) {
	for limit := time.Second; ; limit *= 4 { // a busy machine may leave no time for an attempt
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := zmq.Dial(ctx, zmq.Config{Endpoint: tcp(testenv.FreePort(t))})
		cancel()
		refused := errors.Is(err, syscall.ECONNREFUSED)
		if !errors.Is(err, context.DeadlineExceeded) || !refused && limit > 10*time.Second {
			t.Fatalf("got %v; expected the deadline and the last attempt's refusal", err)
		}
		if refused {
			return
		}
	}
}

// The runner is silent for much longer than libzmq waits for a PONG; had it
// not been answered, libzmq would have cut the connection.
func TestHeartbeatsOfLibzmqAreAnswered(t *testing.T) {
	var err error
	for _, interval := range []time.Duration{100 * time.Millisecond, time.Second} { // a busy machine may pause us for longer than libzmq waits at first
		port := testenv.FreePort(t)
		pyRunner(t, port, "--heartbeat", strconv.FormatInt(interval.Milliseconds(), 10))
		conn := dial(t, tcp(port))
		order := fmt.Appendf(nil, "sleep %v", 30*interval.Seconds())
		var got []byte
		if err = conn.Send(within(t), order); err == nil {
			got, err = conn.Recv(within(t))
		}
		if err == nil {
			if !bytes.Equal(got, order) {
				t.Fatalf("got %q", got)
			}
			return
		}
	}
	t.Fatal(err)
}

func TestMultipartIsDroppedAndTheConnectionIsWell(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port)
	conn := dial(t, tcp(port))
	roundTrip(t, conn, []byte("parts"))
	roundTrip(t, conn, []byte("next"))
}

// Whenever the runner is killed, the end is noticed and no part of a message is
// taken for a message.
func TestRunnerKilledWhileAnswering(t *testing.T) {
	const size = 1 << 20
	for round := range 12 {
		port := testenv.FreePort(t)
		runner := pyRunner(t, port)
		conn := dial(t, tcp(port))
		ctx := within(t)
		if err := conn.Send(ctx, fmt.Appendf(nil, "flood 200 %d", size)); err != nil {
			t.Fatal(err)
		}
		for range rand.IntN(1 + 2*round) {
			if frame, err := conn.Recv(ctx); err != nil || len(frame) != size {
				t.Fatalf("got %d bytes, %v", len(frame), err)
			}
		}
		if err := runner.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for {
			frame, err := conn.Recv(ctx)
			if errors.Is(err, messenger.ErrClosed) {
				break
			}
			if err != nil || len(frame) != size {
				t.Fatalf("got %d bytes, %v", len(frame), err)
			}
		}
		ended(t, conn)
		if err := conn.Send(ctx, []byte("x")); !errors.Is(err, messenger.ErrClosed) {
			t.Fatalf("Send after the end: %v", err)
		}
	}
}

func TestAnswersBeforeTheEndAreReceived(t *testing.T) {
	port := testenv.FreePort(t)
	runner := pyRunner(t, port)
	conn := dial(t, tcp(port))
	ctx := within(t)
	for _, body := range []string{"flood 3 10", "last"} {
		if err := conn.Send(ctx, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	// The first has come, so the runner is answering; "last" may or may not
	// make it before the kill, but what the connection took it hands over.
	if _, err := conn.Recv(ctx); err != nil {
		t.Fatal(err)
	}
	_ = runner.Process.Kill()
	ended(t, conn)
	for {
		frame, err := conn.Recv(ctx)
		if errors.Is(err, messenger.ErrClosed) {
			return
		}
		if string(frame) != "xxxxxxxxxx" && string(frame) != "last" {
			t.Fatalf("got %q, %v", frame, err)
		}
	}
}

func TestFrozenRunner(t *testing.T) {
	port := testenv.FreePort(t)
	runner := pyRunner(t, port)
	conn := dial(t, tcp(port))
	roundTrip(t, conn, []byte("warm"))
	if err := runner.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Run("small messages wait until it continues", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := conn.Send(t.Context(), []byte("patience")); err != nil {
			t.Fatal(err)
		}
		if frame, err := conn.Recv(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %q, %v from a frozen runner", frame, err)
		}
		if err := runner.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		frame, err := conn.Recv(within(t))
		if err != nil || string(frame) != "patience" {
			t.Fatalf("got %q, %v", frame, err)
		}
	})
	t.Run("a blocked send ends with its context", func(t *testing.T) {
		if err := runner.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		var err error
		for range 64 { // more than any socket buffers
			if err = conn.Send(ctx, make([]byte, messenger.MaxMessage)); err != nil {
				break
			}
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		conn.Close()
	})
}

// A connection's identity is its own: libzmq ignores one that it knows already.
func TestFreshConnectionsInQuickSuccession(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port)
	for range 50 {
		conn, err := zmq.Dial(within(t), zmq.Config{Endpoint: tcp(port)})
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn, []byte("hello"))
		conn.Close()
	}
}

// TestMain's goleak sees what these leave.
func TestCloseWithUnreadAnswers(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port)
	for range 300 {
		conn, err := zmq.Dial(within(t), zmq.Config{Endpoint: tcp(port)})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Send(within(t), []byte("flood 100 1000")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestUnixEndpoint(t *testing.T) {
	endpoint := "ipc://" + filepath.Join(t.TempDir(), "runner.sock")
	echo(t, zmq.RouterConfig{Endpoint: endpoint})
	roundTrip(t, dial(t, endpoint), []byte("hello"))
}

// echo runs a Router of ours that answers each message with itself.
func echo(t testing.TB, cfg zmq.RouterConfig) *zmq.Router {
	t.Helper()
	cfg.Identity = "runner"
	router, err := zmq.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			m, err := router.Recv(context.Background())
			if err != nil {
				return
			}
			if string(m.Frame) == "sleep" {
				time.Sleep(700 * time.Millisecond)
			}
			_ = router.Send(context.Background(), m.From, m.Frame)
		}
	})
	t.Cleanup(func() {
		if err := router.Close(); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
	return router
}

func TestRouterWithLibzmqDealer(t *testing.T) {
	python := testenv.Python(t, "zmq", "python3-zmq")
	for name, args := range map[string][]string{"plain": nil, "heartbeats": {"--heartbeat", "100"}} {
		t.Run(name, func(t *testing.T) {
			port := testenv.FreePort(t)
			echo(t, zmq.RouterConfig{Endpoint: tcp(port)})
			cmd := exec.CommandContext(within(t), python, append([]string{"testdata/dealer.py", strconv.Itoa(port)}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}
