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

// HelperName is the name of the program that speaks to the driver.
const HelperName = "shepherd-gpu"

// What shepherd-gpu exits with. It says why on the last line of its standard
// error.
const (
	// ExitNoDriver: the machine has no NVIDIA driver, or it is not loaded.
	ExitNoDriver = 3
	// ExitDriver: the driver is there and refuses.
	ExitDriver = 4
)

// The defaults of HelperConfig.
const (
	DefaultTimeout  = 20 * time.Second
	DefaultInterval = 5 * time.Second
)

// HelperConfig says which program a Helper runs, and for how long.
type HelperConfig struct {
	// Program is shepherd-gpu. Where empty it is looked for beside this program,
	// on PATH and in /usr/libexec/shepherd.
	Program string
	// Timeout bounds one question to the driver. A GPU without persistence mode
	// takes seconds to answer the first.
	Timeout time.Duration
}

// Helper asks the driver by running shepherd-gpu, so that whatever the driver
// does, it does to that program. Methods may be called at once and return soon
// after their context ends. Their errors have a class of errdefs:
//
//	FailedPrecondition  shepherd-gpu is not installed, or cannot be run
//	NotFound            the machine has no NVIDIA driver
//	Unavailable         the driver refuses to answer
//	DeadlineExceeded    the driver hangs; the error is ErrHung
//	Internal            shepherd-gpu crashed, or said what nobody understands
//
// An error of a context that ended is that context's cause.
type Helper struct {
	cfg HelperConfig

	mu sync.Mutex
	// stuck is open while a process is there that the kernel does not let die.
	stuck    <-chan struct{}
	stuckPID int
}

// NewHelper makes a Helper. It starts nothing.
func NewHelper(cfg HelperConfig) *Helper {
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	return &Helper{cfg: cfg}
}

// Inventory asks for the machine's GPUs.
func (h *Helper) Inventory(ctx context.Context) (*Inventory, error) {
	out, err := h.ask(ctx, "inventory")
	if err != nil {
		return nil, err
	}
	var inv Inventory
	if err := json.Unmarshal(out, &inv); err != nil {
		return nil, fmt.Errorf("%s inventory printed no inventory: %w: %w", HelperName, err, errdefs.ErrInternal)
	}
	return &inv, nil
}

// CDI asks for a CDI spec of the machine's GPUs.
func (h *Helper) CDI(ctx context.Context) ([]byte, error) { return h.ask(ctx, "cdi") }

// Watch says what is watched, and how often.
type Watch struct {
	// Interval is the time between two states of a GPU; 0 is the default.
	Interval time.Duration
	// PCI are the addresses of the GPUs to watch; all where it is empty. No other
	// GPU is opened, so the driver can reset those.
	PCI []string
}

// Watch tells observe the state of every GPU, each at every interval, and the Xids
// that they report, until the context ends, whose cause it then returns, or
// shepherd-gpu does. It calls observe one at a time.
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
	// Whatever ends the watch ends the reading.
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
			stop(fmt.Errorf("%s watch printed a line that is no sample: %q: %w", HelperName, clip(lines.Bytes()), errdefs.ErrInternal))
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
	maxWords  = 64 << 10 // of what it says on standard error
	// grace is what a killed process has to be gone, before it is called stuck.
	grace = 2 * time.Second
)

// ErrHung says that the driver does not answer. It is a context.DeadlineExceeded.
var ErrHung = fmt.Errorf("the NVIDIA driver does not answer (look at dmesg; reset the GPUs, or restart the machine): %w", context.DeadlineExceeded)

// ask runs a command that prints one thing.
func (h *Helper) ask(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.Timeout, ErrHung)
	defer cancel()
	return h.run(ctx, nil, args...)
}

// run runs a command until it or the context ends. What it prints goes to the
// file, which is closed, or is returned.
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
	out, words := bounded.NewHead(maxOutput), bounded.NewTail(maxWords)
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, words
	if to != nil {
		cmd.Stdout = to
	}
	cmd.WaitDelay = grace // for what it may have started
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %w", HelperName, err, errdefs.ErrFailedPrecondition)
	}
	gone := make(chan struct{})
	var status error
	go func() { // ends with the process, which no one can hurry
		defer close(gone)
		status = cmd.Wait()
	}()
	select {
	case <-gone:
		return out.Bytes(), verdict(args[0], status, out.Over(), words.String())
	case <-ctx.Done():
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	patience := time.NewTimer(grace + time.Second)
	defer patience.Stop()
	select {
	case <-gone:
	case <-patience.C:
		h.mu.Lock()
		h.stuck, h.stuckPID = gone, cmd.Process.Pid
		h.mu.Unlock()
	}
	return nil, context.Cause(ctx)
}

// free says whether the driver may be asked: one process that it holds on to is
// enough.
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
		return fmt.Errorf("process %d (%s) is held by the driver and cannot be ended: %w", h.stuckPID, HelperName, ErrHung)
	}
}

// driverError is what the helper says of the driver, with a class for programs.
type driverError struct {
	words string
	class error
}

func (e *driverError) Error() string { return e.words }

func (e *driverError) Unwrap() error { return e.class }

// verdict is what the end of the program means.
func verdict(command string, status error, over bool, words string) error {
	var exit *exec.ExitError
	said := lastLine(words)
	switch {
	case over:
		return fmt.Errorf("%s %s printed more than %d bytes: %w", HelperName, command, maxOutput, errdefs.ErrInternal)
	case status == nil:
		return nil
	case !errors.As(status, &exit):
		return fmt.Errorf("%s %s: %w: %w", HelperName, command, status, errdefs.ErrInternal)
	case exit.ExitCode() == ExitNoDriver:
		return &driverError{cmp.Or(said, "the machine has no NVIDIA driver"), errdefs.ErrNotFound}
	case exit.ExitCode() == ExitDriver:
		return &driverError{cmp.Or(said, "the NVIDIA driver refuses"), errdefs.ErrUnavailable}
	case said != "":
		return fmt.Errorf("%s %s crashed (%v): %s: %w", HelperName, command, status, said, errdefs.ErrInternal)
	}
	return fmt.Errorf("%s %s crashed (%v): %w", HelperName, command, status, errdefs.ErrInternal)
}

// lastLine is the last line with anything in it.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return clip([]byte(text[strings.LastIndexByte(text, '\n')+1:]))
}

// clip makes what a program said fit for a message.
func clip(text []byte) string {
	const longest = 500
	if len(text) > longest {
		text = text[:longest]
	}
	return strings.ToValidUTF8(string(text), "?")
}
