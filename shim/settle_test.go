package shim

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/proc"
)

// A shim that was kept from beginning has the lock for a moment, until it has found no
// spec: Settle waits for its end.
func TestSettleBesideAShimThatEnds(t *testing.T) {
	dir := t.TempDir()
	starting, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if free, err := starting.TryLock(); !free || err != nil {
		t.Fatalf("%t, %v", free, err)
	}
	time.AfterFunc(20*time.Millisecond, func() { starting.Close() })
	outcome, err := Settle(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil || outcome.Exit == nil || !outcome.Exit.Lost {
		t.Errorf("Settle: %+v, %v", outcome, err)
	}
}

func TestLeftovers(t *testing.T) {
	const life = "0123"
	mark := []string{"A=b", Mark + "=" + life}
	env := map[int][]string{
		10: mark, 11: mark, 12: {"A=b"}, 13: {}, 14: {Mark + "=" + life + "4"}, 15: {"A=b"}, 16: {"A=b"}, 20: {"A=b"}, 21: {"A=b"}, 22: {},
	}
	all := []proc.Process{
		{PID: 10, Start: 100, Parent: 1},
		{PID: 11, Start: 50, Parent: 1},               // older than the shim
		{PID: 12, Start: 100, Parent: 10},             // a child, environment replaced
		{PID: 13, Start: 100, Parent: 1, Session: 9},  // wiped, in the shim's session
		{PID: 14, Start: 100, Parent: 1},              // another life
		{PID: 15, Start: 100, Parent: 1, Session: 9},  // in the session, with an environment of its own
		{PID: 16, Start: 100, Parent: 1},              // in the control group
		{PID: 20, Start: 100, Parent: 1, State: 'Z'},  //
		{PID: 21, Start: 100, Parent: 1, Session: 77}, // somebody else's
		{PID: 22, Start: 100, Parent: 1, Session: 77},
	}
	environ := func(pid int) []string { return env[pid] }
	state := State{Shim: proc.Process{PID: 9, Start: 90}}
	check := func(name string, all []proc.Process, state State, grouped []int, want ...int) {
		t.Helper()
		var got []int
		for _, p := range leftovers(all, life, state, grouped, environ) {
			got = append(got, p.PID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	check("with all that is known", all, state, []int{16}, 10, 12, 13, 16)
	reused := append(slices.Clone(all), proc.Process{PID: 9, Start: 95, Parent: 1, Session: 9})
	env[9] = []string{"A=b"}
	check("the shim's id is another process's", reused, state, nil, 10, 12)
	check("the state is lost", all, State{}, nil, 10, 11, 12)
}

func TestFolderLock(t *testing.T) {
	dir := t.TempDir()
	shims, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := shims.Lock(); err != nil {
		t.Fatal(err)
	}
	daemons, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer daemons.Close()
	if free, err := daemons.TryLock(); free || err != nil {
		t.Errorf("got the lock of a living shim: %v, %v", free, err)
	}
	if err := Remove(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove: %v, want a refusal", err)
	}
	log := slog.New(slog.DiscardHandler)
	if _, err := Settle(t.Context(), dir, log); !errors.Is(err, ErrAlive) {
		t.Errorf("Settle: %v, want %v", err, ErrAlive)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Attach(ctx, dir, log); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Attach to a shim that does not listen: %v", err)
	}
	shims.Close()
	if _, err := Attach(t.Context(), dir, log); !errdefs.IsNotFound(err) {
		t.Errorf("Attach to a dead shim: %v, want not found", err)
	}
	if err := AwaitEnd(t.Context(), dir); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// TestAttachPreventsALateStart is of a daemon that is killed right after it has started
// a shim: the next daemon may look into the folder before the shim takes it.
func TestAttachPreventsALateStart(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, began := range []bool{false, true} {
		dir := t.TempDir()
		if err := writeJSON(filepath.Join(dir, specFile), Spec{Version: Version}); err != nil {
			t.Fatal(err)
		}
		if began {
			if err := writeJSON(filepath.Join(dir, stateFile), State{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Attach(t.Context(), dir, log); !errdefs.IsNotFound(err) {
			t.Errorf("Attach: %v, want not found", err)
		}
		if _, err := ReadSpec(dir); (err == nil) != began {
			t.Errorf("began: %v: the spec that a shim would start with: %v", began, err)
		}
	}
}

// TestHandleWithStrangeShims gives the daemon's side what no shim sends.
func TestHandleWithStrangeShims(t *testing.T) {
	for _, said := range []string{
		"", "\x00\x00\x00\x02{}", "\xff\xff\xff\xff", string(frame(`{"kind":"exit"}`)), string(frame(`{"kind":"hello"}`)),
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = ReadMessage(theirs)
			_, _ = theirs.Write([]byte(said))
			theirs.Close()
		}()
		if h, err := newHandle(t.Context(), t.TempDir(), ours, slog.New(slog.DiscardHandler)); err == nil {
			h.Detach()
			t.Errorf("%q was taken for a hello", said)
		}
	}
}

func FuzzHandle(f *testing.F) {
	f.Add(append(frame(`{"kind":"hello","hello":{"version":1,"runner_pid":5,"answers":1}}`), frame(`{"kind":"answer","answer":{"job":"a"}}`)...))
	f.Add(append(frame(`{"kind":"hello","hello":{"version":2}}`), frame(`{"kind":"exit","exit":{"code":1}}`)...))
	f.Add(append(frame(`{"kind":"hello","hello":{"version":1}}`), frame(`{"kind":"started","pid":4}{"kind":"connected"}`)...))
	f.Add(append(frame(`{"kind":"hello","hello":{"version":1,"answers":18446744073709551615}}`), frame(`{"kind":"answer","answer":{"job":"../x"}}`)...))
	f.Add(append(frame(`{"kind":"hello","hello":{"version":1}}`), frame(`{"kind":"hello","hello":{"version":1}}`)...))
	f.Add(append(frame(`{"kind":"hello","hello":{"version":1}}`), 0xff, 0xff, 0xff, 0xff))
	f.Add(frame(`{"kind":"answer"}`))
	dir := f.TempDir()
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := ReadMessage(theirs); err != nil {
				return
			}
			_, _ = theirs.Write(data)
		}()
		h, _ := newHandle(t.Context(), dir, ours, log)
		if h == nil {
			return
		}
		<-h.line.read
		h.Detach()
		for {
			if _, err := h.Recv(t.Context()); err != nil {
				break
			}
		}
	})
}

func TestStartTellsWhatWentWrong(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "shim")
	for _, c := range []struct{ body, want string }{
		{"echo no such thing >&3", "no such thing"},
		{"exit 0", "it ended at once"},
	} {
		if err := os.WriteFile(script, []byte("#!/bin/sh\n"+c.body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		folder := filepath.Join(dir, "lives", "x")
		_, err := Start(t.Context(), script, folder, Spec{LogDir: filepath.Join(dir, "log")}, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want it to say %q", c.body, err, c.want)
		}
		if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: its folder is left: %v", c.body, err)
		}
	}
}

// TestWaitUnknown has nobody know what became of a shim: another daemon is not blamed.
func TestWaitUnknown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "life")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // instead of the directory
		t.Fatal(err)
	}
	h := makeHandle(path, slog.New(slog.DiscardHandler))
	go h.line.run(nil)
	if exit, err := h.Wait(t.Context()); err == nil || errors.Is(err, ErrSuperseded) {
		t.Errorf("got %+v, %v", exit, err)
	}
}
