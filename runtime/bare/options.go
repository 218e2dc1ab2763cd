package bare

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/libexec"
	"github.com/iterait/shepherd/internal/shellwords"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// Options is the configuration of one bare sheep.
type Options struct {
	Type string `yaml:"type"`
	// Port is the TCP port on which the runner listens; 0 chooses a free one for each
	// start of a runner.
	Port int `yaml:"port"`
	// Devices are the GPUs that the runner sees; see visible.
	Devices gpu.Devices `yaml:"devices"`
	// WorkingDirectory holds NAME/VERSION/config.yaml of each model.
	WorkingDirectory string `yaml:"working_directory"`
	// StdoutFile and StderrFile are files to which the runner's output is appended;
	// their directories are created.
	StdoutFile string `yaml:"stdout_file"`
	StderrFile string `yaml:"stderr_file"`
	// Command is run instead of shepherd-runner. {port}, {config}, {model} and
	// {version} are replaced in it; if it has none of these, -p PORT CONFIG is appended,
	// as for shepherd-runner.
	Command Words `yaml:"command"`
	// Env is added to the daemon's environment.
	Env map[string]string `yaml:"env"`
	// Grace and OrphanTimeout override the driver's.
	Grace         time.Duration `yaml:"grace"`
	OrphanTimeout time.Duration `yaml:"orphan_timeout"`
}

// check validates the options and makes paths absolute. Its error joins
// *runtime.FieldError values.
func (o *Options) check() error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, &runtime.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if o.Port < 0 || o.Port > 65535 {
		wrong("port", "%d is not a TCP port, 1 to 65535 (0 or none picks a free one)", o.Port)
	}
	for i, d := range o.Devices.List {
		if d.Kind != gpu.NVIDIA && d.Kind != gpu.AMD {
			wrong(fmt.Sprintf("devices[%d]", i), "%s cannot be given to a bare sheep, which knows only %s and %s; use a container sheep", d, gpu.NVIDIA, gpu.AMD)
		}
	}
	if o.WorkingDirectory == "" {
		wrong("working_directory", "is required: the directory that holds NAME/VERSION/config.yaml of each model")
	}
	for _, path := range []struct {
		field string
		value *string
	}{{"working_directory", &o.WorkingDirectory}, {"stdout_file", &o.StdoutFile}, {"stderr_file", &o.StderrFile}} {
		switch {
		case *path.value == "":
		case strings.ContainsRune(*path.value, 0):
			wrong(path.field, "contains a zero byte")
		default:
			abs, err := filepath.Abs(*path.value)
			if err != nil {
				wrong(path.field, "%v", err)
			}
			*path.value = abs
		}
	}
	if slices.ContainsFunc(o.Command, func(w string) bool { return strings.ContainsRune(w, 0) }) {
		wrong("command", "contains a zero byte")
	}
	if len(o.Command) > 0 && o.Command[0] == "" {
		wrong("command", "begins with an empty word")
	}
	for _, name := range slices.Sorted(maps.Keys(o.Env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(o.Env[name], 0) {
			wrong("env."+name, "is not an environment variable")
		}
	}
	if o.Grace < 0 {
		wrong("grace", "cannot be negative")
	}
	if o.OrphanTimeout < 0 {
		wrong("orphan_timeout", "cannot be negative")
	}
	return errors.Join(errs...)
}

// Words is a command line: a list of words, or one string that is split like a shell
// does, with quotes and backslashes but without expansions.
type Words []string

// UnmarshalYAML parses either form.
func (w *Words) UnmarshalYAML(unmarshal func(any) error) error {
	var line string
	if err := unmarshal(&line); err == nil {
		words, err := shellwords.Split(line)
		if err != nil {
			return fmt.Errorf("command: %w", err)
		}
		*w = words
		return nil
	}
	var list []string
	if err := unmarshal(&list); err != nil {
		return errors.New("command: expected a list of words or one string")
	}
	*w = list
	return nil
}

const (
	modelConfig   = "config.yaml"
	defaultRunner = "shepherd-runner"
)

// configPath is the path of the model's configuration, relative to WorkingDirectory.
func configPath(m job.Model) string { return filepath.Join(m.Name, m.Version, modelConfig) }

// command returns the command line of a runner with the model on the port.
func (o *Options) command(m job.Model, port int) []string {
	words := slices.Clone([]string(o.Command))
	if len(words) == 0 {
		words = []string{defaultRunner}
	}
	replace := strings.NewReplacer(
		"{port}", strconv.Itoa(port), "{config}", configPath(m), "{model}", m.Name, "{version}", m.Version)
	replaced := false
	for i, word := range words {
		words[i] = replace.Replace(word)
		for _, p := range []string{"{port}", "{config}", "{model}", "{version}"} {
			replaced = replaced || strings.Contains(word, p)
		}
	}
	if !replaced {
		words = append(words, "-p", strconv.Itoa(port), configPath(m))
	}
	return words
}

// hostVariable tells runners made with the SDK to listen on the loopback address only,
// where the shim connects. Its name is part of the contract, like the command line.
const (
	hostVariable = "SHEPHERD_RUNNER_HOST"
	loopback     = "127.0.0.1"
)

// environment returns the runner's environment: the daemon's, without its own choice of
// GPUs, with the address to listen on, the variables that make the sheep's GPUs visible,
// and the sheep's own.
func (o *Options) environment(daemon []string, visible map[string]string) []string {
	env := make(map[string]string, len(daemon)+len(o.Env)+len(visible))
	for _, entry := range daemon {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" {
			env[name] = value
		}
	}
	if visible == nil {
		visible = map[string]string{cudaVisible: ""}
	}
	delete(env, cudaVisible)
	if o.Devices.Asks(gpu.AMD) {
		delete(env, rocrVisible)
		delete(env, hipVisible)
	}
	env[hostVariable] = loopback
	env[messenger.EnvFeatures] = messenger.FeatureEvents
	maps.Copy(env, visible)
	maps.Copy(env, o.Env)
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// findProgram searches a runner's program as a shell in the working directory would, with
// the runner's PATH. If shepherd-runner is not on PATH, the one that is installed with the
// daemon is used.
func findProgram(name, dir string, env []string) (string, error) {
	runnable := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if !runnable(path) {
			return "", fmt.Errorf("runner `%s` is not a program that can be run; check the sheep's `command`", path)
		}
		return path, nil
	}
	path := ""
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			path = value
		}
	}
	for _, place := range filepath.SplitList(path) {
		if !filepath.IsAbs(place) {
			place = filepath.Join(dir, place)
		}
		if candidate := filepath.Join(place, name); runnable(candidate) {
			return candidate, nil
		}
	}
	if name == defaultRunner {
		if installed, err := libexec.Find(name, ""); err == nil {
			return installed, nil
		}
		return "", fmt.Errorf("`%s` is not found on PATH (%s); install it or set the sheep's `command` to your own runner", name, path)
	}
	return "", fmt.Errorf("runner `%s` is not found on PATH (%s); install it or give its whole path in the sheep's `command`", name, path)
}
