// Package proc reads processes and their sockets from /proc: descendants, environments and
// listeners. Processes start and end meanwhile; those that have ended are left out.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is one line of the process table. Start, in clock ticks since boot,
// distinguishes a process from a later one with the same PID on the same boot.
type Process struct {
	PID     int    `json:"pid"`
	Start   uint64 `json:"start"`
	Parent  int    `json:"-"`
	Group   int    `json:"-"`
	Session int    `json:"-"`
	State   byte   `json:"-"`
	Name    string `json:"-"`
}

// Zombie reports whether the process has ended and was not reaped yet.
func (p Process) Zombie() bool { return p.State == 'Z' || p.State == 'X' }

// Read returns the process with the PID; the error is os.ErrNotExist when there
// is none.
func Read(pid int) (Process, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return Process{}, err
	}
	return ParseStat(data)
}

// ParseStat reads /proc/PID/stat, proc_pid_stat(5). The name, in parentheses,
// may itself contain spaces and parentheses.
func ParseStat(data []byte) (Process, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 1 || end < open {
		return Process{}, fmt.Errorf("process status %q has no name", data)
	}
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 20 || len(fields[0]) != 1 {
		return Process{}, fmt.Errorf("process status %q is too short", data)
	}
	p := Process{Name: string(data[open+1 : end]), State: fields[0][0]}
	var err error
	for _, f := range []struct {
		into *int
		text string
	}{{&p.PID, strings.TrimSpace(string(data[:open]))}, {&p.Parent, fields[1]}, {&p.Group, fields[2]}, {&p.Session, fields[3]}} {
		if *f.into, err = strconv.Atoi(f.text); err != nil {
			return Process{}, fmt.Errorf("process status %q: %w", data, err)
		}
	}
	if p.Start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return Process{}, fmt.Errorf("process status %q: %w", data, err)
	}
	return p, nil
}

// All returns the process table.
func All() ([]Process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []Process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, err := Read(pid); err == nil {
			all = append(all, p)
		}
	}
	return all, nil
}

// Descendants returns those of all that descend from one of the roots, without
// the roots themselves.
func Descendants(all []Process, roots ...int) []Process {
	children := make(map[int][]Process, len(all))
	for _, p := range all {
		children[p.Parent] = append(children[p.Parent], p)
	}
	seen := make(map[int]bool, len(roots))
	for _, root := range roots {
		seen[root] = true
	}
	var found []Process
	for queue := append([]int(nil), roots...); len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			if !seen[p.PID] {
				seen[p.PID] = true
				found = append(found, p)
				queue = append(queue, p.PID)
			}
		}
	}
	return found
}

// Environ returns a process's environment as it was when the program started,
// NAME=VALUE entries. It may be empty, or be overwritten by the program.
func Environ(pid int) ([]string, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return nil, err
	}
	data = bytes.TrimRight(data, "\x00")
	if len(data) == 0 {
		return nil, nil
	}
	return strings.Split(string(data), "\x00"), nil
}

// Command returns a process's command line, shortened for display, or its name in brackets
// if it has none.
func Command(pid int) string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	text := strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " "))
	if err != nil || text == "" {
		if p, err := Read(pid); err == nil {
			return "[" + p.Name + "]"
		}
		return "unknown command"
	}
	const most = 120
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// Signal sends sig to p and to no later process with its PID. A process that
// has ended is not an error.
func Signal(p Process, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.ENOSYS):
		if now, err := Read(p.PID); err != nil || now.Start != p.Start {
			return nil
		}
		err = unix.Kill(p.PID, sig)
	case err == nil:
		defer unix.Close(fd)
		if now, err := Read(p.PID); err != nil || now.Start != p.Start {
			return nil
		}
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
		}
		return nil
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
	return nil
}

// BootID identifies this boot of the machine: process ids and start times are valid only
// within one.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}
