package gpu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/bounded"
	"github.com/iterait/shepherd/internal/libexec"
)

// HelperName is the name of the program that calls the driver.
const HelperName = "shepherd-gpu"

// The exit codes of shepherd-gpu. The last line of its standard error has the reason.
const (
	// ExitNoDriver: the machine has no NVIDIA driver, or it is not loaded.
	ExitNoDriver = 3
	// ExitDriver: the driver is loaded and returns an error.
	ExitDriver = 4
)

// The defaults of HelperConfig.
const (
	DefaultTimeout  = 20 * time.Second
	DefaultInterval = 5 * time.Second
)

// HelperConfig configures a Helper.
type HelperConfig struct {
	// Program is the path of shepherd-gpu. If empty, it is searched beside this program,
	// on PATH and in /usr/libexec/shepherd.
	Program string
	// Timeout is the time limit of one query. A GPU without persistence mode takes
	// seconds to answer the first.
	Timeout time.Duration
}

// Helper queries the driver by running shepherd-gpu, so that a broken driver affects only
// that program. Its methods may be called concurrently, and return soon after their
// context ends. Their errors have a class of errdefs:
//
//	FailedPrecondition  shepherd-gpu is not installed, or cannot be run
//	NotFound            the machine has no NVIDIA driver
//	Unavailable         the driver returns an error
//	DeadlineExceeded    the driver hangs; the error is ErrHung
//	Internal            shepherd-gpu crashed, or its output is invalid
//
// If the context has ended, the error is its cause.
type Helper struct {
	cfg HelperConfig

	mu sync.Mutex
	// stuck is closed when a process that could not be killed has ended.
	stuck    <-chan struct{}
	stuckPID int
}

// NewHelper makes a Helper. It starts nothing.
func NewHelper(cfg HelperConfig) *Helper {
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	return &Helper{cfg: cfg}
}

// Inventory returns the machine's GPUs.
func (h *Helper) Inventory(ctx context.Context) (*Inventory, error) {
	out, err := h.ask(ctx, "inventory")
	if err != nil {
		return nil, err
	}
	var inv Inventory
	if err := json.Unmarshal(out, &inv); err != nil {
		return nil, fmt.Errorf("%s inventory printed invalid output: %w: %w", HelperName, err, errdefs.ErrInternal)
	}
	return &inv, nil
}

// CDI returns a generated CDI spec of the machine's GPUs.
func (h *Helper) CDI(ctx context.Context) ([]byte, error) { return h.ask(ctx, "cdi") }

// Watch configures which GPUs are watched, and how often.
type Watch struct {
	// Interval is the time between two states of a GPU; 0 is the default.
	Interval time.Duration
	// PCI are the addresses of the GPUs to watch; empty is all. No other GPU is opened,
	// so the driver can reset those.
	PCI []string
}

// Watch calls observe with the state of every GPU at every interval, and with the Xid
// errors that they report, until ctx or shepherd-gpu ends. The calls come from one
// goroutine. If ctx has ended, the error is its cause.
func (h *Helper) Watch(ctx context.Context, w Watch, observe func(Sample)) error {
	interval := cmp.Or(w.Interval, DefaultInterval)
	args := []string{"watch", "--interval", interval.String()}
	if len(w.PCI) > 0 {
		args = append(args, "--pci", strings.Join(w.PCI, ","))
	}
	r, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("watch GPUs: %w", err)
	}
	defer r.Close()
	silence := h.cfg.Timeout + 2*interval
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	quiet := time.AfterFunc(silence, func() { stop(ErrHung) })
	defer quiet.Stop()
	// Reading ends when the watch does.
	defer context.AfterFunc(watching, func() { r.SetReadDeadline(time.Now()) })()

	ended := make(chan error, 1)
	go func() {
		_, err := h.run(watching, out, args...)
		ended <- err
	}()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var s Sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil || s.Time.IsZero() {
			stop(fmt.Errorf("%s watch printed a line that is not a sample: %q: %w", HelperName, clip(lines.Bytes()), errdefs.ErrInternal))
			break
		}
		quiet.Reset(silence)
		observe(s)
	}
	if err := lines.Err(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		stop(fmt.Errorf("%s watch: %w: %w", HelperName, err, errdefs.ErrInternal))
	}
	if err := <-ended; err != nil {
		return err
	}
	return fmt.Errorf("%s watch ended by itself: %w", HelperName, errdefs.ErrInternal)
}

const (
	maxOutput = 16 << 20
	maxLine   = 1 << 20
	maxStderr = 64 << 10
	// grace is how long a killed process may take to end before it is considered stuck.
	grace = 2 * time.Second
)

// ErrHung is the error of a driver that does not answer in time. It wraps
// context.DeadlineExceeded.
var ErrHung = fmt.Errorf("the NVIDIA driver does not answer (look at dmesg; reset the GPUs, or restart the machine): %w", context.DeadlineExceeded)

// ask runs a command with the time limit, and returns its output.
func (h *Helper) ask(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.Timeout, ErrHung)
	defer cancel()
	return h.run(ctx, nil, args...)
}

// run runs a command until it or ctx ends. Its output goes to the file to, which run
// closes, or is returned if to is nil.
func (h *Helper) run(ctx context.Context, to *os.File, args ...string) ([]byte, error) {
	if to != nil {
		defer to.Close()
	}
	path, err := libexec.Find(HelperName, h.cfg.Program)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err := h.free(); err != nil {
		return nil, err
	}
	out, stderr := bounded.NewHead(maxOutput), bounded.NewTail(maxStderr)
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, stderr
	if to != nil {
		cmd.Stdout = to
	}
	cmd.WaitDelay = grace // for processes that it may have started
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %w", HelperName, err, errdefs.ErrFailedPrecondition)
	}
	gone := make(chan struct{})
	var status error
	go func() { // ends with the process, which may be blocked in the kernel
		defer close(gone)
		status = cmd.Wait()
	}()
	select {
	case <-gone:
		return out.Bytes(), exitError(args[0], status, out.Over(), stderr.String())
	case <-ctx.Done():
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	timeout := time.NewTimer(grace + time.Second)
	defer timeout.Stop()
	select {
	case <-gone:
	case <-timeout.C:
		h.mu.Lock()
		h.stuck, h.stuckPID = gone, cmd.Process.Pid
		h.mu.Unlock()
	}
	return nil, context.Cause(ctx)
}

// free returns an error while a process is stuck in the driver: no second one is started.
func (h *Helper) free() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stuck == nil {
		return nil
	}
	select {
	case <-h.stuck:
		h.stuck = nil
		return nil
	default:
		return fmt.Errorf("process %d (%s) is blocked in the driver and cannot be killed: %w", h.stuckPID, HelperName, ErrHung)
	}
}

// driverError is an error of the driver that shepherd-gpu has printed.
type driverError struct {
	text  string
	class error
}

func (e *driverError) Error() string { return e.text }

func (e *driverError) Unwrap() error { return e.class }

// exitError returns the error of a command that has ended; over is true if it has printed
// too much.
func exitError(command string, status error, over bool, stderr string) error {
	var exit *exec.ExitError
	reason := lastLine(stderr)
	switch {
	case over:
		return fmt.Errorf("%s %s printed more than %d bytes: %w", HelperName, command, maxOutput, errdefs.ErrInternal)
	case status == nil:
		return nil
	case !errors.As(status, &exit):
		return fmt.Errorf("%s %s: %w: %w", HelperName, command, status, errdefs.ErrInternal)
	case exit.ExitCode() == ExitNoDriver:
		return &driverError{cmp.Or(reason, "the machine has no NVIDIA driver"), errdefs.ErrNotFound}
	case exit.ExitCode() == ExitDriver:
		return &driverError{cmp.Or(reason, "the NVIDIA driver returns an error"), errdefs.ErrUnavailable}
	case reason != "":
		return fmt.Errorf("%s %s crashed (%v): %s: %w", HelperName, command, status, reason, errdefs.ErrInternal)
	}
	return fmt.Errorf("%s %s crashed (%v): %w", HelperName, command, status, errdefs.ErrInternal)
}

// lastLine returns the last line that is not blank.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return clip([]byte(text[strings.LastIndexByte(text, '\n')+1:]))
}

// clip shortens a program's output for a message.
func clip(text []byte) string {
	const limit = 500
	if len(text) > limit {
		text = text[:limit]
	}
	return strings.ToValidUTF8(string(text), "?")
}
