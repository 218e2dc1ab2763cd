package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/claims"
)

// TestStateIsPrivate, where the daemon makes its directory itself.
func TestStateIsPrivate(t *testing.T) {
	claims.Hold(t, "L4")
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	remove, err := writeAddress(dir, "unix:///x")
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, dir + "/lock": 0o600, dir + "/api": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

// TestAddressIsWhole, also for a command that reads it while the daemon writes it.
func TestAddressIsWhole(t *testing.T) {
	const url = "unix:///x"
	dir := t.TempDir()
	var writing sync.WaitGroup
	var written atomic.Bool
	writing.Go(func() {
		defer written.Store(true)
		for range 200 {
			if _, err := writeAddress(dir, url); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for !written.Load() {
		if at, err := Address(dir); err == nil && at != url {
			t.Errorf("the address is %q", at)
			break
		}
	}
	writing.Wait()
}

// TestCommandsDoNotKeepADaemonFromStarting: asking whether one is running does not,
// and neither does what works without one.
func TestCommandsDoNotKeepADaemonFromStarting(t *testing.T) {
	claims.Hold(t, "L7")
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if _, err := Running(dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 50 {
		lock, err := lockState(dir)
		if err != nil {
			t.Fatal(err)
		}
		if running, err := Running(dir); !running || err != nil {
			t.Fatalf("running %v, %v", running, err)
		}
		lock.Close()
	}
	stop()
	asking.Wait()

	cfg := &config.Config{StateDir: dir, DataRoot: t.TempDir(), Ledger: config.Ledger{Path: filepath.Join(dir, "ledger.db")}}
	_, closeModels, err := OpenModels(t.Context(), cfg, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer closeModels()
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	var closing closers
	defer func() { closing.close() }()
	if _, err := openLedger(t.Context(), cfg, false, slog.New(slog.DiscardHandler), &closing); err != nil {
		t.Error(err)
	}
}
