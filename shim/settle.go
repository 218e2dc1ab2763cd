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

// ErrAlive is Settle's error if the shim is alive.
var ErrAlive = errors.New("the shim is alive")

// GroupName is the name of a life's control groups.
func GroupName(life string) string { return "shepherd-" + life }

// Settle returns the outcome of a life whose shim has ended, with Exit always set, and
// kills every process of the life that is left. It writes no file and removes only the
// spec of a shim that has not started, which then ends; so Settle can be interrupted and
// repeated. The caller calls Remove after it has stored the outcome. If the shim is
// alive the error is ErrAlive; use Attach then.
//
// The outcome has the unacknowledged answers, except after a restart of the machine: the
// output files of their jobs may not have reached the disk.
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
		return Outcome{}, fmt.Errorf("read the machine's boot id: %w", err)
	}
	if err := f.preventStart(); err != nil {
		return Outcome{}, err
	}
	var state State
	err = readJSON(filepath.Join(f.Path(), stateFile), &state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the state of a shim that ended cannot be read; its processes are found by their environment", "dir", folder, "error", err)
		state = State{}
	}
	outcome, err := ReadOutcome(f.Path())
	if err != nil {
		log.Warn("the outcome of a shim that ended cannot be read; a job it had counts as lost", "dir", folder, "error", err)
		outcome = Outcome{}
	}
	if state.Boot != "" && state.Boot != boot || outcome.Boot != "" && outcome.Boot != boot {
		_ = cgroup.Find(GroupName(filepath.Base(folder))).Remove() // exists only if a container was restarted
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

// Kill kills a shim that does not respond. The kernel kills a bare runner with it; Settle
// then kills the remaining processes. It is not an error if the shim has ended.
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

// Alive reports whether the shim of a life's directory is alive.
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

// AwaitEnd waits until the shim of a life's directory has ended, or ctx has.
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

// lostJob returns the job that counts as under way if the answers cannot be trusted.
func lostJob(o Outcome) job.ID {
	if o.Job == "" && len(o.Answers) > 0 {
		return o.Answers[len(o.Answers)-1].Job
	}
	return o.Job
}

// endLeftovers kills the processes of a life until none is left. The kernel has killed a
// bare runner with its shim already, but not the processes that the runner started.
func endLeftovers(ctx context.Context, life string, state State, log *slog.Logger) error {
	group := cgroup.Open(GroupName(life), state.Groups)
	if len(group.Dirs()) == 0 { // the state is damaged, or was never written
		group = cgroup.Find(GroupName(life))
	}
	// One scan can miss a process that is forked, or executes another program, during
	// the scan, so two scans in a row must find nothing.
	const scans = 2
	for clear, wait := 0, time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		grouped := group.PIDs()
		all, err := proc.All()
		if err != nil {
			return err
		}
		left := leftovers(all, life, state, grouped, environ)
		if len(left) == 0 && len(group.PIDs()) == 0 {
			if clear++; clear == scans {
				break
			}
		} else {
			clear = 0
		}
		group.Kill()
		for _, p := range left {
			log.Info("killing a process that a runner left behind", "pid", p.PID, "command", p.Name)
			if err := proc.Signal(p, unix.SIGKILL); err != nil {
				log.Warn("cannot kill a process that a runner left behind", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill the processes that a runner left behind (%d remain): %w", len(left), ctx.Err())
		case <-time.After(wait):
		}
	}
	if err := group.Remove(); err != nil {
		log.Warn("cannot remove the control group of a runner that ended", "error", err)
	}
	return nil
}

func environ(pid int) []string {
	env, _ := proc.Environ(pid)
	return env
}

// leftovers returns those of all processes that belong to a life: those in its control
// group, those with its Mark in their environment, those with an empty environment in
// the shim's session, and the descendants of all these. Processes older than the shim
// do not belong to it. The session does not count if the shim's process id was reused.
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
