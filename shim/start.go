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

// ReadyFD is the descriptor on which a starting shim says Ready, or what went
// wrong. It is the only one it inherits besides its standard ones.
const (
	ReadyFD = 3
	Ready   = "ready"
)

// ownLog is the shim's own log in Spec.LogDir, and how large it may be before a
// new one is begun, in bytes.
const (
	ownLog      = "shim.log"
	ownLogLimit = 1 << 20
)

// Start makes the folder of a life, starts the shim at binary in it, and
// connects to it. The shim goes on when this process ends. Its runner may not
// have started yet when Start returns: a runner that cannot be started is an
// Exit with StartError. When Start itself fails nothing is left but the log.
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

// Begin begins to start a shim, as Start does; a container's FIFOs are there when
// it returns. Wait must be called, and has the rest done.
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

// Wait waits until the shim is up and connects to it. When it fails nothing is
// left but the log.
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

// abandon ends a shim that did not come up.
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

// awaitReady reads what the starting shim says.
func awaitReady(ctx context.Context, ready *os.File) error {
	unwatch := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	said, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	switch text := strings.TrimSpace(string(said)); {
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

// Attach connects to the shim that lives in the folder. The error is of class
// errdefs.ErrNotFound when none does: Settle is for that case, and none begins in the
// folder any more, not even one that a daemon started right before its end. With a
// *VersionError there is a handle all the same, good for Stop, Wait and Release.
func Attach(ctx context.Context, folder string, log *slog.Logger) (*Handle, error) {
	f, err := OpenFolder(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no folder %s: %w", folder, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := f.dial(ctx)
		if err == nil {
			h, greeting := newHandle(ctx, folder, conn, log)
			if !brokeOff(greeting) { // else it is just ending
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
			return nil, fmt.Errorf("no shim lives in %s: %w", folder, errdefs.ErrNotFound)
		}
		// A shim that has just started takes the lock a moment before it listens.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the shim in %s: %w: %w", folder, err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// brokeOff reports whether the other side of a connection has gone.
func brokeOff(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, unix.EPIPE, unix.ECONNRESET}, func(e error) bool { return errors.Is(err, e) })
}
