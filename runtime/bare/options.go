package bare

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// Options is the configuration of one bare sheep.
type Options struct {
	Type string `yaml:"type"`
	// Port is where the runner listens; 0 picks a free one for each life.
	Port int `yaml:"port"`
	// Devices become CUDA_VISIBLE_DEVICES: /dev/nvidia3 gives 3, and
	// nvidia.com/gpu=GPU-<uuid> its tail. Other /dev paths are ignored. With
	// "all" the variable is not set; with no device it is empty.
	Devices []string `yaml:"devices"`
	// WorkingDirectory holds NAME/VERSION/config.yaml of each model.
	WorkingDirectory string `yaml:"working_directory"`
	// StdoutFile and StderrFile are appended to; their folders are created.
	StdoutFile string `yaml:"stdout_file"`
	StderrFile string `yaml:"stderr_file"`
	// Command is run instead of shepherd-runner. {port}, {config}, {model} and
	// {version} are replaced in it; if it has none of these, it is called as
	// shepherd-runner is, with -p PORT CONFIG added.
	Command Words `yaml:"command"`
	// Env is added to the daemon's environment.
	Env map[string]string `yaml:"env"`
	// Grace and OrphanTimeout override the driver's.
	Grace         time.Duration `yaml:"grace"`
	OrphanTimeout time.Duration `yaml:"orphan_timeout"`
}

// check finds what is wrong and makes paths absolute.
func (o *Options) check() error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, &runtime.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if o.Port < 0 || o.Port > 65535 {
		wrong("port", "%d is not a TCP port, 1 to 65535 (0 or none picks a free one)", o.Port)
	}
	if _, _, err := visibleDevices(o.Devices); err != nil {
		wrong("devices", "%v", err)
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

// Words is a command line: a list of words, or one string that is taken apart as
// a shell would, with quotes and backslashes and without anything else.
type Words []string

// UnmarshalYAML reads either form.
func (w *Words) UnmarshalYAML(unmarshal func(any) error) error {
	var line string
	if err := unmarshal(&line); err == nil {
		words, err := splitWords(line)
		*w = words
		return err
	}
	var list []string
	if err := unmarshal(&list); err != nil {
		return errors.New("command: expected a list of words or one string")
	}
	*w = list
	return nil
}

// splitWords takes a command line apart by the rules of POSIX shell quoting.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	begun, quote, escaped := false, rune(0), false
	for _, r := range line {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("$`\"\\\n", r) {
				word.WriteByte('\\')
			}
			if r != '\n' {
				word.WriteRune(r)
			}
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	switch {
	case quote != 0:
		return nil, fmt.Errorf("command: the quote %c is not closed", quote)
	case escaped:
		return nil, errors.New("command: ends with a backslash")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

var (
	nvidiaDevice = regexp.MustCompile(`^/dev/nvidia([0-9]+)$`)
	nvidiaName   = regexp.MustCompile(`^nvidia\.com/gpu=([0-9]+|GPU-[0-9a-fA-F-]+|MIG-[0-9a-zA-Z/-]+)$`)
)

// visibleDevices is the value of CUDA_VISIBLE_DEVICES, or all.
func visibleDevices(devices []string) (value string, all bool, err error) {
	var visible []string
	for _, d := range devices {
		switch {
		case d == "all" || d == "nvidia.com/gpu=all":
			all = true
		case nvidiaDevice.MatchString(d):
			visible = append(visible, nvidiaDevice.FindStringSubmatch(d)[1])
		case strings.HasPrefix(d, "/dev/"):
		case nvidiaName.MatchString(d):
			visible = append(visible, nvidiaName.FindStringSubmatch(d)[1])
		default:
			return "", false, fmt.Errorf("%q is not a device of a bare sheep; expected /dev/nvidiaN, nvidia.com/gpu=N, nvidia.com/gpu=GPU-<uuid>, nvidia.com/gpu=MIG-<uuid> or all", d)
		}
	}
	return strings.Join(visible, ","), all, nil
}

const (
	modelConfig   = "config.yaml"
	defaultRunner = "shepherd-runner"
)

// configPath is the model's file, below WorkingDirectory.
func configPath(m job.Model) string { return filepath.Join(m.Name, m.Version, modelConfig) }

// command is the command line of a runner with the model on the port.
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

// environment is the runner's: the daemon's, with the visible devices and the
// sheep's own additions.
func (o *Options) environment(daemon []string) []string {
	env := make(map[string]string, len(daemon)+len(o.Env)+1)
	for _, entry := range daemon {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" {
			env[name] = value
		}
	}
	const cuda = "CUDA_VISIBLE_DEVICES"
	visible, all, _ := visibleDevices(o.Devices) // checked
	if all {
		delete(env, cuda)
	} else {
		env[cuda] = visible
	}
	maps.Copy(env, o.Env)
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// findProgram looks a runner's program up as a shell in the working directory
// would, with the runner's PATH.
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
		return "", fmt.Errorf("`%s` is not found on PATH (%s); install it or set the sheep's `command` to your own runner", name, path)
	}
	return "", fmt.Errorf("runner `%s` is not found on PATH (%s); install it or give its whole path in the sheep's `command`", name, path)
}
