package container

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/internal/libexec"
	"github.com/iterait/shepherd/internal/shellwords"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/oci"
)

// Contract is how a container receives jobs. docs/writing-runners.md describes the
// contracts.
type Contract string

// The contracts. All but ContractZeroMQ are spoken by shepherd-runner, which
// becomes the container's first process and starts the image's command.
const (
	ContractAuto    Contract = ""        // as the image's labels have it, else zeromq
	ContractZeroMQ  Contract = "zeromq"  // the image's program listens on port 9999 itself
	ContractCommand Contract = "command" // the command is started for each job
	ContractWarm    Contract = "warm"    // the command stays up and reads jobs
	ContractCog     Contract = "cog"     // the image was built with Cog
)

// ModelContract sets how the images of some models receive jobs. For a field left
// empty the sheep's Options apply, and after those the image's labels.
type ModelContract struct {
	Models   job.Rule
	Contract Contract
	Command  []string
	Args     []string
}

// optionsFor returns the sheep's options with those that Config.Contracts overrides
// for the model.
func (c *containers) optionsFor(m job.Model) Options {
	o := c.options
	for _, rule := range c.cfg.Contracts {
		if !rule.Models.Matches(m) {
			continue
		}
		o.Contract = cmp.Or(rule.Contract, o.Contract)
		if rule.Command != nil {
			o.Command, o.Args = rule.Command, nil
		}
		if rule.Args != nil {
			o.Args = rule.Args
		}
		break
	}
	return o
}

// Labels with which an image declares how it receives jobs: a contract, and a command
// that replaces the image's, as a shell command line or a JSON list.
const (
	contractLabel = "shepherd.contract"
	commandLabel  = "shepherd.command"
)

// cogLabels are labels that Cog sets on the images it builds.
var cogLabels = []string{"run.cog.version", "org.cogmodel.cog_version", "run.cog.config"}

// runnerPath is where shepherd-runner is mounted in a container.
const runnerPath = "/.shepherd-runner"

// injection describes how shepherd-runner becomes the first process of a container
// whose image does not implement contract zeromq.
type injection struct {
	contract Contract
	command  []string // replaces the image's command; nil keeps it
}

// chooseContract returns how a container receives jobs: by the configured contract,
// or by the image's labels where none is configured.
func chooseContract(configured Contract, labels map[string]string) (injection, error) {
	in := injection{contract: configured}
	if in.contract == ContractAuto {
		in.contract = Contract(labels[contractLabel])
	}
	command, hasCommand := labels[commandLabel]
	if in.contract == ContractAuto {
		switch {
		case hasCommand:
			in.contract = ContractCommand
		case slices.ContainsFunc(cogLabels, func(l string) bool { _, ok := labels[l]; return ok }):
			in.contract = ContractCog
		default:
			in.contract = ContractZeroMQ
		}
	}
	if err := in.contract.check(); err != nil {
		return in, fmt.Errorf("the image's label %s: %w", contractLabel, err)
	}
	if hasCommand {
		words, err := parseCommand(command)
		if err != nil {
			return in, fmt.Errorf("the image's label %s: %w", commandLabel, err)
		}
		in.command = words
	}
	return in, nil
}

func (c Contract) check() error {
	switch c {
	case ContractAuto, ContractZeroMQ, ContractCommand, ContractWarm, ContractCog:
		return nil
	}
	return fmt.Errorf("%q is none of zeromq, command, warm and cog", string(c))
}

func parseCommand(text string) ([]string, error) {
	var words []string
	if strings.HasPrefix(strings.TrimSpace(text), "[") {
		if err := json.Unmarshal([]byte(text), &words); err != nil {
			return nil, fmt.Errorf("expected a list of words in JSON: %w", err)
		}
	} else {
		var err error
		if words, err = shellwords.Split(text); err != nil {
			return nil, err
		}
	}
	if len(words) == 0 || words[0] == "" || slices.ContainsFunc(words, func(w string) bool { return strings.ContainsRune(w, 0) }) {
		return nil, fmt.Errorf("%q is not a command", text)
	}
	return words, nil
}

// setCommand sets the command of the image's label, which replaces the image's own and not
// one that is configured.
func (in injection) setCommand(o *oci.Options) {
	if in.contract != ContractZeroMQ && in.command != nil && o.Command == nil {
		o.Command, o.Args = in.command, nil
	}
}

// edit returns the edit of a spec that makes shepherd-runner the first process; it is
// to be applied before all others. It is nil with contract zeromq. stopSignal is the
// image's; 0 is SIGTERM.
func (in injection) edit(stopSignal int) (func(*specs.Spec) error, error) {
	if in.contract == ContractZeroMQ {
		return nil, nil
	}
	program, err := libexec.Find("shepherd-runner", "")
	if err != nil {
		return nil, err
	}
	return func(s *specs.Spec) error {
		args := []string{runnerPath, "run", "--contract", string(in.contract)}
		if stopSignal != 0 {
			args = append(args, "--stop-signal", strconv.Itoa(stopSignal))
		}
		s.Process.Args = slices.Concat(args, []string{"--"}, s.Process.Args)
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: runnerPath, Source: program, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"},
		})
		return nil
	}, nil
}
