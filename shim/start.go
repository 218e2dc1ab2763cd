package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ReadyFD is the descriptor to which a starting shim writes Ready, or an error's text.
// It is the only one that it inherits besides the standard ones.
const (
	ReadyFD = 3
	Ready   = "ready"
)

// ownLog is the name of the shim's own log in Spec.LogDir, and ownLogLimit its size in
// bytes from which it is rotated.
const (
	ownLog      = "shim.log"
	ownLogLimit = 1 << 20
)

// Start creates a life's directory, starts the shim at binary in it, and connects to it.
// The shim stays up when this process ends. The runner may not have started yet when
// Start returns: a runner that cannot be started is reported as an Exit with StartError.
// If Start fails, only the log is left.
func Start(ctx context.Context, binary, folder string, spec Spec, log *slog.Logger) (*Handle, error) {
	s, err := Begin(binary, folder, spec, log)
	if err != nil {
		return nil, err
	}
	return s.Wait(ctx)
}

// Starting is a shim that is being started.
type Starting struct {
	folder string
	cmd    *exec.Cmd
	ready  *os.File
	logged string // the path of its log
	log    *slog.Logger
}

// Begin does the first part of Start: it starts the shim's process. A container's FIFOs
// exist when it returns. The caller must call Wait, which does the rest.
func Begin(binary, folder string, spec Spec, log *slog.Logger) (_ *Starting, err error) {
	spec.Version = Version
	if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory of a runner: %w", err)
	}
	if err := os.MkdirAll(spec.LogDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the log directory of a runner: %w", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory of a runner: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(folder)
		}
	}()
	if err := writeJSON(filepath.Join(folder, specFile), spec); err != nil {
		return nil, fmt.Errorf("write the shim's spec: %w", err)
	}
	if spec.Container != nil {
		for _, name := range []string{Stdout, Stderr} {
			if err := unix.Mkfifo(filepath.Join(folder, name), 0o600); err != nil {
				return nil, fmt.Errorf("make a FIFO for the runner's output: %w", err)
			}
		}
	}
	out, err := openOwnLog(spec.LogDir)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	ready, readyOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, folder)
	cmd.Dir = "/"
	cmd.Env = []string{"GOTRACEBACK=single"}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{readyOut}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	readyOut.Close()
	if err != nil {
		ready.Close()
		return nil, fmt.Errorf("start shepherd-shim: %w", err)
	}
	return &Starting{folder: folder, cmd: cmd, ready: ready, logged: out.Name(), log: log}, nil
}

// Wait waits until the shim is ready and connects to it. If it fails, only the log is
// left.
func (s *Starting) Wait(ctx context.Context) (*Handle, error) {
	defer s.ready.Close()
	if err := awaitReady(ctx, s.ready); err != nil {
		s.abandon(ctx)
		return nil, fmt.Errorf("start shepherd-shim: %w (its log is %s)", err, s.logged)
	}
	h, err := Attach(ctx, s.folder, s.log)
	if err != nil {
		if h != nil {
			h.Detach()
		}
		s.abandon(ctx)
		return nil, err
	}
	h.child = s.cmd.Wait
	return h, nil
}

// abandon kills a shim that did not become ready, and cleans up after it.
func (s *Starting) abandon(ctx context.Context) {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if _, err := Settle(cleaning, s.folder, s.log); err != nil {
		s.log.Warn("cannot clean up after a shim that did not start", "dir", s.folder, "error", err)
	}
	_ = os.RemoveAll(s.folder)
}

// awaitReady waits until the starting shim has written Ready; any other text is an error.
func awaitReady(ctx context.Context, ready *os.File) error {
	unwatch := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	output, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	switch text := strings.TrimSpace(string(output)); {
	case !unwatch() && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case text == Ready:
		return nil
	case text == "":
		return errors.New("it ended at once")
	default:
		return errors.New(text)
	}
}

func openOwnLog(dir string) (*os.File, error) {
	path := filepath.Join(dir, ownLog)
	if info, err := os.Stat(path); err == nil && info.Size() > ownLogLimit {
		_ = os.Rename(path, path+".1")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the shim's log: %w", err)
	}
	return f, nil
}

// Attach connects to the running shim of a life's directory. The error is of class
// errdefs.ErrNotFound if there is none; use Settle then. After that no shim starts in the
// directory any more, not even one that a daemon started right before it was killed. With
// a *VersionError Attach also returns a Handle, whose Stop, Wait and Release work.
func Attach(ctx context.Context, folder string, log *slog.Logger) (*Handle, error) {
	f, err := OpenFolder(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no directory %s: %w", folder, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := f.dial(ctx)
		if err == nil {
			h, greeting := newHandle(ctx, folder, conn, log)
			if !brokeOff(greeting) { // if it did, the shim is ending
				return h, greeting
			}
			err = greeting
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		free, lockErr := f.TryLock()
		switch {
		case lockErr != nil:
			return nil, lockErr
		case free:
			if err := f.preventStart(); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("no shim is alive in %s: %w", folder, errdefs.ErrNotFound)
		}
		// A shim that has just started takes the lock a moment before it listens.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the shim in %s: %w: %w", folder, err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// brokeOff reports whether an error means that the peer has closed the connection.
func brokeOff(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, unix.EPIPE, unix.ECONNRESET}, func(e error) bool { return errors.Is(err, e) })
}
