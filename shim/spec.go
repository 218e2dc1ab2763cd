package shim

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// The files of a life's folder.
const (
	specFile    = "spec.json"
	stateFile   = "state.json"
	outcomeFile = "outcome.json"
	socketFile  = "socket"
)

// The FIFOs of a container's output.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// RunnerLog is what the log of the runner's output is called in Spec.LogDir;
// rotated, it is RunnerLog.1 and so on, the oldest with the highest number.
const RunnerLog = "runner.log"

// Mark is the environment variable that carries the life's id in the runner and
// all it starts.
const Mark = "SHEPHERD_LIFE"

// Spec says what a shim is to do. The daemon writes it, the shim reads it.
type Spec struct {
	Version int       `json:"version"`
	Life    string    `json:"life"`
	Sheep   string    `json:"sheep"`
	Model   job.Model `json:"model"`
	// Runner is what the shim starts; Container what containerd does. With
	// neither the shim only talks to a runner.
	Runner    *Process   `json:"runner,omitempty"`
	Container *Container `json:"container,omitempty"`
	// Port is where the runner listens, on 127.0.0.1.
	Port int `json:"port"`
	// LogDir receives the shim's own log, shim.log, and what the runner writes
	// where Process names no file, runner.log, rotated when it reaches LogSize
	// bytes with LogKeep older ones kept.
	LogDir  string `json:"log_dir"`
	LogSize int64  `json:"log_size"`
	LogKeep int    `json:"log_keep"`
	// Grace is how long the runner has between TERM and KILL when the shim stops
	// it by itself.
	Grace time.Duration `json:"grace_ns"`
	// OrphanTimeout is how long the shim waits for a daemon when there is
	// nothing left to do; 0 means for ever.
	OrphanTimeout time.Duration `json:"orphan_timeout_ns"`
}

// Process is a program to run. Path is absolute. Stdout and Stderr are files
// appended to, their folders created; where empty, the output goes to the log.
type Process struct {
	Path   string   `json:"path"`
	Args   []string `json:"args"` // without the program's name
	Dir    string   `json:"dir"`
	Env    []string `json:"env"`
	Stdout string   `json:"stdout,omitempty"`
	Stderr string   `json:"stderr,omitempty"`
}

// Container is a runner whose parent is another than the shim, which watches it
// from the moment the daemon names its process: see Handle.Watch. What it writes
// goes into the FIFOs Stdout and Stderr of the life's folder. Its control groups are called GroupName(Life).
type Container struct {
	ID          string `json:"id"`
	Snapshotter string `json:"snapshotter"`
	// OwnNetwork says that it has a network namespace of its own: Port is there.
	OwnNetwork bool `json:"own_network,omitempty"`
	// CNI says that CNI's plugins have connected that namespace.
	CNI bool `json:"cni,omitempty"`
	// StopSignal asks the runner to end; 0 means TERM.
	StopSignal int `json:"stop_signal,omitempty"`
}

// State is what the shim notes of its processes for who cleans up after it.
type State struct {
	Version int           `json:"version"`
	Boot    string        `json:"boot"`
	Shim    proc.Process  `json:"shim"`
	Runner  *proc.Process `json:"runner,omitempty"`
	Groups  []string      `json:"cgroups,omitempty"`
}

// Exit says how a runner ended.
type Exit struct {
	Code        int    `json:"code"` // -1 when it ended by a signal or is not known
	Signal      string `json:"signal,omitempty"`
	OutOfMemory bool   `json:"out_of_memory,omitempty"`
	// OOMNearby says that the kernel killed a process for memory as it ended, its
	// own or another's: if SIGKILL ended it, it was out of memory.
	OOMNearby bool   `json:"oom_nearby,omitempty"`
	Stopped   bool   `json:"stopped,omitempty"` // we ended it
	Lost      bool   `json:"lost,omitempty"`    // it went down with the shim or the machine
	Detail    string `json:"detail,omitempty"`
	LastLog   string `json:"last_log,omitempty"`
	// StartError says why the runner could not be started; nothing else is set
	// then. Retry says that trying again later may help.
	StartError string `json:"start_error,omitempty"`
	Retry      bool   `json:"retry,omitempty"`
}

// Answer is a runner's answer about a job; Failure is nil when it is done.
type Answer struct {
	Job     job.ID       `json:"job"`
	Failure *job.Failure `json:"failure,omitempty"`
	// See messenger.Answer.
	Log      string   `json:"log,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Message is the answer as the daemon knows it.
func (a Answer) Message() messenger.Answer {
	return messenger.Answer{JobID: a.Job, Failure: a.Failure, Log: a.Log, Warnings: a.Warnings}
}

// Outcome is what is kept of a life for a daemon that comes later.
type Outcome struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`
	// Job was given to the runner and is not answered.
	Job job.ID `json:"job,omitempty"`
	// Answers are those not acknowledged, oldest first.
	Answers []Answer `json:"answers,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
}

// NewLife returns an id for a life.
func NewLife() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// ReadSpec reads the spec of the life in dir.
func ReadSpec(dir string) (Spec, error) {
	var s Spec
	if err := readJSON(filepath.Join(dir, specFile), &s); err != nil {
		return Spec{}, fmt.Errorf("read the shim's spec: %w", err)
	}
	if s.Version != Version {
		return Spec{}, &VersionError{Shim: Version, Daemon: s.Version}
	}
	return s, nil
}

// ReadOutcome reads what is kept of the life in dir. The outcome is empty when
// nothing is.
func ReadOutcome(dir string) (Outcome, error) {
	var o Outcome
	err := readJSON(filepath.Join(dir, outcomeFile), &o)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Outcome{}, nil
	case err != nil:
		return Outcome{}, fmt.Errorf("read a runner's outcome: %w", err)
	case o.Version != Version:
		return Outcome{}, &VersionError{Shim: o.Version, Daemon: Version}
	}
	return o, nil
}

// WriteOutcome replaces what is kept of the life in dir.
func WriteOutcome(dir string, o Outcome) error {
	o.Version = Version
	return writeJSON(filepath.Join(dir, outcomeFile), o)
}

// WriteState replaces the state of the life in dir.
func WriteState(dir string, s State) error {
	s.Version = Version
	return writeJSON(filepath.Join(dir, stateFile), s)
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces a file by rename; a reader sees the old or the new.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
