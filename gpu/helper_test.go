package gpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestInventory(t *testing.T) {
	inv, err := NewHelper(HelperConfig{Program: program(t, "well")}).Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.GPUs) != 2 || inv.Driver != "550.54.15" || inv.GPUs[0].Memory != 40<<30 || inv.GPUs[0].Utilization != nil || *inv.GPUs[1].Utilization != 0 {
		t.Errorf("got %+v", inv)
	}
}

func TestArguments(t *testing.T) {
	spec, err := NewHelper(HelperConfig{Program: program(t, "arguments")}).CDI(t.Context())
	if err != nil || string(spec) != `["cdi"]` {
		t.Errorf("got %s, %v", spec, err)
	}
}

func TestTroubles(t *testing.T) {
	noProgram := filepath.Join(t.TempDir(), "nothing")
	for how, c := range map[string]struct {
		class func(error) bool
		says  string
	}{
		"no driver":          {errdefs.IsNotFound, "libnvidia-ml.so.1 was not found"},
		"no driver, no word": {errdefs.IsNotFound, "no NVIDIA driver"},
		"refuses":            {errdefs.IsUnavailable, "version mismatch"},
		"chatters":           {errdefs.IsUnavailable, "the last word"},
		"crashes":            {errdefs.IsInternal, "undefined symbol"},
		"garbage":            {errdefs.IsInternal, "invalid output"},
		"much":               {errdefs.IsInternal, "more than"},
		"hangs":              {errdefs.IsDeadlineExceeded, "does not answer"},
		"is not there":       {errdefs.IsFailedPrecondition, "run shepherd-gpu"},
	} {
		t.Run(how, func(t *testing.T) {
			cfg := HelperConfig{Program: noProgram}
			if how != "is not there" {
				cfg.Program = program(t, how)
			}
			if how == "hangs" {
				cfg.Timeout = 200 * time.Millisecond
			}
			_, err := NewHelper(cfg).Inventory(t.Context())
			if !c.class(err) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A helper that is not installed is another thing than a machine without driver.
func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := NewHelper(HelperConfig{}).Inventory(t.Context())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "shepherd-gpu is not installed") {
		t.Errorf("got %v", err)
	}
}

// What the caller gave up is not the driver's fault.
func TestCallerGivesUp(t *testing.T) {
	why := errors.New("the daemon stops")
	ctx, stop := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { stop(why) })
	h := NewHelper(HelperConfig{Program: program(t, "hangs")})
	if _, err := h.Inventory(ctx); err != why {
		t.Errorf("got %v", err)
	}
	if err := h.Watch(ctx, Watch{}, func(Sample) {}); err != why {
		t.Errorf("got %v", err)
	}
}

// A process that even SIGKILL does not end holds nobody up, and no second one is
// started beside it; when it is gone, the driver is asked again.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	until, word := filepath.Join(dir, "until"), filepath.Join(dir, "word")
	if err := unix.Mkfifo(until, 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := os.OpenFile(until, os.O_RDWR, 0) // the tracer reads while this is open
	if err != nil {
		t.Fatal(err)
	}
	defer release.Close()
	var h *Helper
	var said []byte
	for timeout := 2 * time.Second; len(said) == 0 && timeout < time.Minute; timeout *= 3 { // the tracer of a busy machine comes late
		h = NewHelper(HelperConfig{Program: program(t, "held", "HOLDS="+word, "UNTIL="+until), Timeout: timeout})
		if _, err := h.Inventory(t.Context()); !errors.Is(err, ErrHung) {
			t.Fatalf("got %v", err)
		}
		said, _ = os.ReadFile(word)
	}
	if string(said) != "held\n" {
		testenv.Missing(t, "the right to trace a process", "run the tests as root (the tracer says: "+string(said)+")")
	}
	_, err = h.Inventory(t.Context())
	if !errors.Is(err, ErrHung) || !strings.Contains(err.Error(), "cannot be killed") {
		t.Fatalf("got %v", err)
	}
	h.mu.Lock()
	stuck := h.stuck
	h.mu.Unlock()
	release.Close()
	select {
	case <-stuck:
	case <-time.After(time.Minute):
		t.Fatal("the process is still there")
	}
	h.cfg.Program = program(t, "well")
	if _, err := h.Inventory(t.Context()); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestWatch(t *testing.T) {
	enough := errors.New("seen enough")
	ctx, stop := context.WithCancelCause(t.Context())
	var seen []Sample
	err := NewHelper(HelperConfig{Program: program(t, "well")}).Watch(ctx, Watch{Interval: time.Second, PCI: []string{"0000:3b:00.0", "0000:86:00.0"}}, func(s Sample) {
		if seen = append(seen, s); len(seen) == 4 {
			stop(enough)
		}
	})
	if err != enough || len(seen) != 4 {
		t.Fatalf("got %v, %d samples", err, len(seen))
	}
	if s := seen[2]; s.UUID != "GPU-aaaa" || s.State == nil || s.Used != 2 || *s.Utilization != 7 || s.Xid != nil || s.Time.Second() != 2 {
		t.Errorf("got %+v", s)
	}
	if s := seen[3]; s.Xid == nil || s.Xid.Code != 79 || s.State != nil {
		t.Errorf("got %+v", s)
	}
}

func TestWatchTroubles(t *testing.T) {
	for how, class := range map[string]func(error) bool{
		"no driver": errdefs.IsNotFound,
		"crashes":   errdefs.IsInternal,
		"garbage":   errdefs.IsInternal,
		"much":      errdefs.IsInternal,
		"hangs":     func(err error) bool { return errors.Is(err, ErrHung) },
	} {
		t.Run(how, func(t *testing.T) {
			cfg := HelperConfig{Program: program(t, how)}
			if how == "hangs" {
				cfg.Timeout = 200 * time.Millisecond
			}
			err := NewHelper(cfg).Watch(t.Context(), Watch{Interval: 10 * time.Millisecond}, func(s Sample) { t.Errorf("got %+v", s) })
			if !class(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
