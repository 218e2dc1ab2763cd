//go:build cgo

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook/commands"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
)

// specConfig says of what and for what a CDI spec is made.
type specConfig struct {
	// DriverRoot is the root of the driver's files, DevRoot that of its device
	// nodes.
	DriverRoot, DevRoot string
	// Hook is the nvidia-cdi-hook that the spec calls. Where empty it is the
	// machine's and, where that has none, this program.
	Hook string
	// Mode is nvcdi's.
	Mode string
}

// hookName is what NVIDIA's container toolkit calls the program that the spec's
// hooks run.
const hookName = "nvidia-cdi-hook"

// hooks are those that nvcdi may put into a spec.
var hooks = []string{
	"update-application-profile", "chmod", "create-symlinks", "disable-device-node-modification",
	"enable-cuda-compat", "update-ldcache", "apply-cuda-memory-limits",
}

// printSpec prints a CDI spec of all GPUs, by index and by UUID.
func printSpec(d *driver, cfg specConfig, out io.Writer) error {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	options := []nvcdi.Option{
		nvcdi.WithNvmlLib(d.lib), nvcdi.WithLogger(log), nvcdi.WithMode(cfg.Mode),
		nvcdi.WithDriverRoot(cfg.DriverRoot), nvcdi.WithDevRoot(cfg.DevRoot),
		// One library of the driver's less to load, and to be broken.
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils),
	}
	var namers []nvcdi.DeviceNamer
	for _, strategy := range []string{nvcdi.DeviceNameStrategyIndex, nvcdi.DeviceNameStrategyUUID} {
		namer, err := nvcdi.NewDeviceNamer(strategy)
		if err != nil {
			return err
		}
		namers = append(namers, namer)
	}
	options = append(options, nvcdi.WithDeviceNamers(namers...))
	program, unknown, err := findHook(cfg.Hook)
	if err != nil {
		return err
	}
	options = append(options, nvcdi.WithNVIDIACDIHookPath(program))
	if len(unknown) > 0 {
		options = append(options, nvcdi.WithDisabledHooks(unknown...))
	}
	library, err := nvcdi.New(options...)
	if err != nil {
		return fmt.Errorf("make a CDI spec: %w", err)
	}
	spec, err := library.GetSpec()
	if err != nil {
		return fmt.Errorf("make a CDI spec: %w", err)
	}
	if _, err := spec.WriteTo(out); err != nil {
		return fmt.Errorf("print the CDI spec: %w", err)
	}
	return nil
}

// findHook finds the program that the spec's hooks run, and which it does not
// know.
func findHook(given string) (program string, unknown []string, err error) {
	if given == "" {
		if given, err = exec.LookPath(hookName); err != nil {
			self, err := os.Executable()
			return self, nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	help, err := exec.CommandContext(ctx, given, "--help").Output()
	if err != nil {
		return "", nil, fmt.Errorf("ask %s what hooks it knows: %w", given, err)
	}
	return given, unknownHooks(string(help)), nil
}

// unknownHooks are the hooks that a help text does not list, each at the begin of
// a line below COMMANDS.
func unknownHooks(help string) []string {
	known := make(map[string]bool)
	_, list, _ := strings.Cut(help, "COMMANDS:")
	for line := range strings.Lines(list) {
		if words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' || r == '\n' }); len(words) > 0 {
			known[words[0]] = true
		}
	}
	var unknown []string
	for _, h := range hooks {
		if !known[h] {
			unknown = append(unknown, h)
		}
	}
	return unknown
}

// hook is nvidia-cdi-hook, of the version that made the spec.
func hook(args []string) int {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	command := commands.ConfigureCDIHookCommand(log, &cli.Command{Name: hookName})
	if err := command.Run(context.Background(), args); err != nil {
		log.Errorf("%v", err)
		return 1
	}
	return 0
}
