package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/job"
)

// ErrAlive says that a shim lives in a folder.
var ErrAlive = errors.New("the shim lives")

// GroupName is the name of the control groups of a life.
func GroupName(life string) string { return "shepherd-" + life }

// Settle finds out how a life ended whose shim is dead, and ends every process
// of it that is still there. Exit is always set in what it returns. Nothing that
// tells of the life is written or removed, so Settle can be interrupted and
// repeated; Remove removes the folder when what it said is safe. A shim that was
// about to begin in the folder finds no spec any more, and ends. When a shim lives
// in the folder the error is ErrAlive: Attach is for that case.
//
// Answers that were kept are returned, except after a restart of the machine:
// the files of the jobs they speak of may not have reached the disk.
func Settle(ctx context.Context, folder string, log *slog.Logger) (Outcome, error) {
	f, err := OpenFolder(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return Outcome{Exit: &Exit{Code: -1, Lost: true, Detail: "the state of its shim was removed"}}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	defer f.Close()
	free, err := f.tryOwn(ctx)
	if err != nil {
		return Outcome{}, err
	}
	if !free {
		return Outcome{}, fmt.Errorf("%s: %w", folder, ErrAlive)
	}
	boot, err := proc.BootID()
	if err != nil {
		return Outcome{}, fmt.Errorf("tell this boot of the machine from others: %w", err)
	}
	if err := f.preventStart(); err != nil {
		return Outcome{}, err
	}
	var state State
	err = readJSON(filepath.Join(f.Path(), stateFile), &state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the state of a dead shim cannot be read; its processes are found by their mark", "dir", folder, "error", err)
		state = State{}
	}
	outcome, err := ReadOutcome(f.Path())
	if err != nil {
		log.Warn("the outcome of a dead shim cannot be read; a job it had counts as lost", "dir", folder, "error", err)
		outcome = Outcome{}
	}
	if state.Boot != "" && state.Boot != boot || outcome.Boot != "" && outcome.Boot != boot {
		_ = cgroup.Find(GroupName(filepath.Base(folder))).Remove() // there is none, unless a container was restarted
		return Outcome{Job: lostJob(outcome), Exit: &Exit{Code: -1, Lost: true, Detail: "the machine was restarted"}}, nil
	}
	if err := endLeftovers(ctx, filepath.Base(folder), state, log); err != nil {
		return Outcome{}, err
	}
	if outcome.Exit == nil {
		outcome.Exit = &Exit{Code: -1, Lost: true, Detail: "its shim ended unexpectedly"}
	}
	return outcome, nil
}

// Kill ends a shim that does not do what it is told; its runner dies with it.
// Settle then ends what is left. A shim that has ended is not an error.
func Kill(folder string) error {
	var state State
	if err := readJSON(filepath.Join(folder, stateFile), &state); err != nil {
		return fmt.Errorf("kill the shim in %s: %w", folder, err)
	}
	if boot, err := proc.BootID(); err != nil || boot != state.Boot || state.Shim.PID <= 1 {
		return err
	}
	return proc.Signal(state.Shim, unix.SIGKILL)
}

// Alive reports whether a shim lives in the folder.
func Alive(folder string) (bool, error) {
	f, err := OpenFolder(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	free, err := f.TryLock()
	return !free && err == nil, err
}

// AwaitEnd waits until no shim lives in the folder.
func AwaitEnd(ctx context.Context, folder string) error {
	f, err := OpenFolder(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	free, err := f.await(ctx)
	if err == nil && !free {
		err = ctx.Err()
	}
	return err
}

// lostJob is the job that counts as under way when the answers cannot be trusted.
func lostJob(o Outcome) job.ID {
	if o.Job == "" && len(o.Answers) > 0 {
		return o.Answers[len(o.Answers)-1].Job
	}
	return o.Job
}

// endLeftovers kills the processes of a life until none is left. The runner
// itself dies with its shim; this is for what it forked.
func endLeftovers(ctx context.Context, life string, state State, log *slog.Logger) error {
	group := cgroup.Open(GroupName(life), state.Groups)
	if len(group.Dirs()) == 0 { // its state is damaged, or was never written
		group = cgroup.Find(GroupName(life))
	}
	// One look can miss what is forked, or changes its program, while it is made:
	// only the second in a row that finds nothing counts.
	const enough = 2
	for clear, wait := 0, time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		grouped := group.PIDs()
		all, err := proc.All()
		if err != nil {
			return err
		}
		left := leftovers(all, life, state, grouped, environ)
		if len(left) == 0 && len(group.PIDs()) == 0 {
			if clear++; clear == enough {
				break
			}
		} else {
			clear = 0
		}
		group.Kill()
		for _, p := range left {
			log.Info("ending a process that a runner left behind", "pid", p.PID, "command", p.Name)
			if err := proc.Signal(p, unix.SIGKILL); err != nil {
				log.Warn("cannot end a process that a runner left behind", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the processes a runner left behind (%d at last): %w", len(left), ctx.Err())
		case <-time.After(wait):
		}
	}
	if err := group.Remove(); err != nil {
		log.Warn("control group of an ended runner stays", "error", err)
	}
	return nil
}

func environ(pid int) []string {
	env, _ := proc.Environ(pid)
	return env
}

// leftovers picks from all processes those of a life: that are in its control
// group, or carry its mark in their environment, or have wiped their environment
// but are in the shim's session, and whatever descends from these. A process
// older than the shim is never one, nor is anything in the session of a later
// process that was given the shim's id.
func leftovers(all []proc.Process, life string, state State, grouped []int, environ func(pid int) []string) []proc.Process {
	mark := Mark + "=" + life
	sessionReused := slices.ContainsFunc(all, func(p proc.Process) bool {
		return p.PID == state.Shim.PID && p.Start != state.Shim.Start
	})
	var roots []int
	found := make(map[int]proc.Process)
	for _, p := range all {
		if p.Zombie() || p.PID == os.Getpid() || p.Start < state.Shim.Start {
			continue
		}
		ours := slices.Contains(grouped, p.PID)
		if !ours {
			env := environ(p.PID)
			wiped := len(env) == 0 && state.Shim.PID > 1 && p.Session == state.Shim.PID && !sessionReused
			ours = wiped || slices.Contains(env, mark)
		}
		if ours {
			found[p.PID] = p
			roots = append(roots, p.PID)
		}
	}
	for _, p := range proc.Descendants(all, roots...) {
		if !p.Zombie() && p.PID != os.Getpid() {
			found[p.PID] = p
		}
	}
	left := make([]proc.Process, 0, len(found))
	for _, p := range found {
		left = append(left, p)
	}
	slices.SortFunc(left, func(a, b proc.Process) int { return a.PID - b.PID })
	return left
}
