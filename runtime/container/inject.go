package container

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/internal/libexec"
	"github.com/iterait/shepherd/internal/shellwords"
	"github.com/iterait/shepherd/job"
)

// Contract is how a container is given jobs.
type Contract string

// The contracts. All but ContractZeroMQ are spoken by shepherd-runner, which
// becomes the container's first process and starts the image's command.
const (
	ContractAuto    Contract = ""        // what the image says, else zeromq
	ContractZeroMQ  Contract = "zeromq"  // the image listens on 9999 by itself
	ContractCommand Contract = "command" // its command is started for each job
	ContractWarm    Contract = "warm"    // its command stays up and reads jobs
	ContractCog     Contract = "cog"     // it was built with Cog
)

// ModelContract is how the images of some models are given jobs. What it leaves empty
// is the sheep's to say, and else the image's.
type ModelContract struct {
	Models   job.Rule
	Contract Contract
	Command  []string
	Args     []string
}

// contractOf are the sheep's options with what is said of the model.
func (c *containers) contractOf(m job.Model) Options {
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

// Labels by which an image says how it is given jobs: a contract, and a command
// in the place of its own, as a shell's line or a list in JSON.
const (
	contractLabel = "shepherd.contract"
	commandLabel  = "shepherd.command"
)

// cogLabels are those that Cog gives its images.
var cogLabels = []string{"run.cog.version", "org.cogmodel.cog_version", "run.cog.config"}

// runnerPath is where shepherd-runner is in a container.
const runnerPath = "/.shepherd-runner"

// injection is what becomes of a container whose image does not speak to shepherd
// by itself.
type injection struct {
	contract Contract
	command  []string // instead of the image's; nil for that
}

// chooseContract says how a container is given jobs: as the sheep's
// configuration has it, else as the image's labels do.
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
		return nil, fmt.Errorf("%q is no command", text)
	}
	return words, nil
}

// edit returns what makes shepherd-runner the first process, which comes before
// all other edits. Own says that the command in the spec is the sheep's own
// configuration's, which goes before the image's label. It is nil where the image
// speaks to shepherd by itself.
func (in injection) edit(own bool, stopSignal string) (func(*specs.Spec) error, error) {
	if in.contract == ContractZeroMQ {
		return nil, nil
	}
	program, err := libexec.Find("shepherd-runner", "")
	if err != nil {
		return nil, err
	}
	return func(s *specs.Spec) error {
		command := s.Process.Args
		if in.command != nil && !own {
			command = in.command
		}
		args := []string{runnerPath, "run", "--contract", string(in.contract)}
		if stopSignal != "" {
			args = append(args, "--stop-signal", stopSignal)
		}
		s.Process.Args = slices.Concat(args, []string{"--"}, command)
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: runnerPath, Source: program, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"},
		})
		return nil
	}, nil
}
