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

	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// The files in a life's directory.
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

// RunnerLog is the name of the log of the runner's output in Spec.LogDir. Rotated logs
// are called RunnerLog.1 and so on; the oldest has the highest number.
const RunnerLog = "runner.log"

// Mark is the environment variable with the life's id in the runner and the processes
// that it starts.
const Mark = "SHEPHERD_LIFE"

// Spec configures a shim. The daemon writes it, the shim reads it.
type Spec struct {
	Version int       `json:"version"`
	Life    string    `json:"life"`
	Sheep   string    `json:"sheep"`
	Model   job.Model `json:"model"`
	// Runner is a process that the shim starts, Container one that containerd starts.
	// Without both, the shim only connects to a runner that it does not manage.
	Runner    *Process   `json:"runner,omitempty"`
	Container *Container `json:"container,omitempty"`
	// Port is the TCP port on which the runner listens, on 127.0.0.1.
	Port int `json:"port"`
	// LogDir is the directory of the shim's own log, shim.log, and of the runner's
	// output unless Process names files for it, runner.log. The latter is rotated when
	// it reaches LogSize bytes, and LogKeep older ones are kept.
	LogDir  string `json:"log_dir"`
	LogSize int64  `json:"log_size"`
	LogKeep int    `json:"log_keep"`
	// Grace is the time between TERM and KILL when the shim stops the runner without
	// a request of the daemon.
	Grace time.Duration `json:"grace_ns"`
	// OrphanTimeout is how long an idle shim waits for a daemon to connect before it
	// stops the runner and ends; 0 means forever.
	OrphanTimeout time.Duration `json:"orphan_timeout_ns"`
}

// Process is a program to run. Path is absolute. Stdout and Stderr are files to which the
// output is appended; their directories are created. If empty, the output goes to the
// log.
type Process struct {
	Path   string   `json:"path"`
	Args   []string `json:"args"` // without the program's name
	Dir    string   `json:"dir"`
	Env    []string `json:"env"`
	Stdout string   `json:"stdout,omitempty"`
	Stderr string   `json:"stderr,omitempty"`
}

// Container is a runner that is not a child of the shim. The shim watches it from the
// moment the daemon tells its pid: see Handle.Watch. Its output goes to the FIFOs Stdout
// and Stderr in the life's directory. Its control groups are called GroupName(Life).
type Container struct {
	ID          string `json:"id"`
	Snapshotter string `json:"snapshotter"`
	// OwnNetwork is true if it has a network namespace of its own, where Port is.
	OwnNetwork bool `json:"own_network,omitempty"`
	// CNI is true if CNI plugins connect that namespace to a network.
	CNI bool `json:"cni,omitempty"`
	// StopSignal is the signal that asks the runner to end; 0 means TERM.
	StopSignal int `json:"stop_signal,omitempty"`
}

// State identifies the processes of a shim, for cleaning up after one that was killed.
type State struct {
	Version int           `json:"version"`
	Boot    string        `json:"boot"`
	Shim    proc.Process  `json:"shim"`
	Runner  *proc.Process `json:"runner,omitempty"`
	Groups  []string      `json:"cgroups,omitempty"`
}

// Exit describes how a runner ended.
type Exit struct {
	Code        int    `json:"code"` // -1 if a signal ended it or the code is not known
	Signal      string `json:"signal,omitempty"`
	OutOfMemory bool   `json:"out_of_memory,omitempty"`
	// OOMNearby is true if the OOM killer killed a process in a control group that the
	// runner shares when the runner ended: if the runner was killed by SIGKILL, it ran
	// out of memory.
	OOMNearby bool   `json:"oom_nearby,omitempty"`
	Stopped   bool   `json:"stopped,omitempty"` // a daemon or the shim stopped it
	Lost      bool   `json:"lost,omitempty"`    // it ended because the shim or the machine did
	Detail    string `json:"detail,omitempty"`
	LastLog   string `json:"last_log,omitempty"`
	// StartError is the error if the runner could not be started; no other field but
	// Retry is set then. Retry is true if a later attempt may succeed.
	StartError string `json:"start_error,omitempty"`
	Retry      bool   `json:"retry,omitempty"`
}

// Answer is a runner's answer to a job; Failure is nil if the job succeeded.
type Answer struct {
	Job     job.ID       `json:"job"`
	Failure *job.Failure `json:"failure,omitempty"`
	// See messenger.Answer.
	Log      string   `json:"log,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Message converts the answer.
func (a Answer) Message() messenger.Answer {
	return messenger.Answer{JobID: a.Job, Failure: a.Failure, Log: a.Log, Warnings: a.Warnings}
}

// Outcome is the part of a life's state that a later daemon needs.
type Outcome struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`
	// Job was sent to the runner and is not answered.
	Job job.ID `json:"job,omitempty"`
	// Answers are those not acknowledged, oldest first.
	Answers []Answer `json:"answers,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
}

// NewLife returns a random id for a life.
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

// ReadOutcome reads the outcome of the life in dir. It is zero if there is none.
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

// WriteOutcome replaces the outcome of the life in dir.
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

// writeJSON replaces a file by rename; a reader sees the old or the new content.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	f, err := durable.Open(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
