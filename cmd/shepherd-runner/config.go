package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
)

// configName is the name of the configuration in a model's directory.
const configName = "config.yaml"

// model is a configured command that processes jobs.
type model struct {
	dir        string   // working directory
	program    string   // absolute path
	args       []string // may contain {inputs}, {outputs} and {job}
	env        []string
	timeout    time.Duration // of a job; 0 for none
	contract   contract
	stopSignal syscall.Signal
	children   *children
}

// contract is how a command receives jobs.
type contract string

// The contracts.
const (
	contractCommand contract = "command" // it is started for each job
	contractWarm    contract = "warm"    // it stays up, see warm
	contractCog     contract = "cog"     // it serves Cog's HTTP API, see cog
)

func (c *contract) UnmarshalText(text []byte) error {
	switch x := contract(text); x {
	case contractCommand, contractWarm, contractCog:
		*c = x
		return nil
	}
	return fmt.Errorf("contract %q is none of command, warm and cog", text)
}

// configYAML is config.yaml.
type configYAML struct {
	Command  []string          `yaml:"command"`
	Contract contract          `yaml:"contract"`
	Timeout  duration          `yaml:"timeout"`
	Env      map[string]string `yaml:"env"`
}

// duration is a duration with a unit, as in 90s or 1h30m.
type duration time.Duration

func (d *duration) UnmarshalYAML(text []byte) error {
	s := strings.Trim(strings.TrimSpace(string(text)), `"'`)
	parsed, err := time.ParseDuration(s)
	if err != nil || parsed <= 0 {
		return fmt.Errorf("timeout %s: expected a duration with its unit, as in 90s or 1h30m", s)
	}
	*d = duration(parsed)
	return nil
}

// loadModel reads the configuration at path, a file or a directory with a config.yaml.
func loadModel(path string, kids *children) (*model, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, configName)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m := &model{
		dir: filepath.Dir(path), args: cfg.Command[1:], timeout: time.Duration(cfg.Timeout),
		contract: cmp.Or(cfg.Contract, contractCommand), stopSignal: syscall.SIGTERM, children: kids,
	}
	if m.program, err = find(cfg.Command[0], m.dir); err != nil {
		return nil, fmt.Errorf("%s: command: %w", path, err)
	}
	for name, value := range cfg.Env {
		m.env = append(m.env, name+"="+value)
	}
	return m, nil
}

// find searches a program as a shell in dir would, and returns its absolute path.
func find(program, dir string) (string, error) {
	if strings.Contains(program, "/") && !filepath.IsAbs(program) {
		program = filepath.Join(dir, program)
	}
	found, err := exec.LookPath(program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

func parseConfig(text []byte) (*configYAML, error) {
	var keys map[string]any
	if err := yaml.Unmarshal(text, &keys); err != nil {
		return nil, oneLine(err)
	}
	if _, ok := keys["command"]; !ok {
		return nil, noCommand(keys)
	}
	var cfg configYAML
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&cfg); err != nil {
		return nil, oneLine(err)
	}
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return nil, errors.New("command: expected a program and its arguments, as in [python3, predict.py]")
	}
	for name := range cfg.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return nil, fmt.Errorf("env: %q cannot be the name of a variable", name)
		}
	}
	return &cfg, nil
}

// noCommand returns the error for a configuration without a command. One that has other
// keys than configYAML is probably a model of the original.
func noCommand(keys map[string]any) error {
	for key := range keys {
		if !slices.Contains([]string{"contract", "timeout", "env"}, key) {
			return errors.New("no `command` in it, so this is not a model for this shepherd-runner; " +
				"if it is an emloop model, put the Python package's shepherd-runner first in PATH, or name it in the sheep's `command`")
		}
	}
	return errors.New("no `command` in it; add the program that processes a job, as in `command: [python3, predict.py]`")
}

// oneLine formats a YAML error as LINE:COLUMN: MESSAGE.
func oneLine(err error) error {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil {
		return err
	}
	at := e.GetToken().Position
	return fmt.Errorf("%d:%d: %s", at.Line, at.Column, e.GetMessage())
}
