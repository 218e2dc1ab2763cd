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

// specConfig configures the generated CDI spec.
type specConfig struct {
	// DriverRoot is the root of the driver's files, DevRoot that of its device
	// nodes.
	DriverRoot, DevRoot string
	// Hook is the path of the nvidia-cdi-hook that the spec calls. If empty, it is the
	// one on PATH or, if there is none, this program.
	Hook string
	// Mode is a mode of package nvcdi.
	Mode string
}

// hookName is the name, in NVIDIA's container toolkit, of the program that the spec's
// hooks run.
const hookName = "nvidia-cdi-hook"

// hooks are the hooks that nvcdi may put into a spec.
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
		// Avoids loading another of the driver's libraries, which may be broken.
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

// findHook returns the program that the spec's hooks run, and the hooks that it does not
// support.
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
		return "", nil, fmt.Errorf("list the hooks of %s: %w", given, err)
	}
	return given, unknownHooks(string(help)), nil
}

// unknownHooks returns the hooks that a help text does not list below COMMANDS, where
// each begins a line.
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

// hook runs nvidia-cdi-hook, in the version of the library that generates the spec.
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
