//go:build cgo

// Command shepherd-gpu queries NVIDIA's driver for package gpu. It is the only program of
// shepherd that links C code, and the only one that a broken driver can hang or crash; the
// daemon runs it with a time limit.
//
//	shepherd-gpu inventory               the machine's GPUs, in JSON
//	shepherd-gpu watch [--interval 5s]   their state, a JSON object a line
//	shepherd-gpu cdi                     a CDI spec of them, in YAML
//
// Package gpu defines its exit codes; the reason is on standard error. Called as
// nvidia-cdi-hook it runs that program, which the hooks of the generated CDI specs call,
// for machines without NVIDIA's container toolkit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/iterait/shepherd/gpu"
)

// Set by the build.
var version, commit string

func main() {
	if filepath.Base(os.Args[0]) == hookName {
		os.Exit(hook(os.Args))
	}
	// No signal is caught: this program could not react while the driver hangs.
	err := run(context.Background(), nvml.New(), os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status(err))
}

const usage = `shepherd-gpu queries NVIDIA's driver for shepherdd.

  shepherd-gpu inventory               the machine's GPUs, in JSON
  shepherd-gpu watch [--interval 5s] [--pci ADDRESS,…]
                                       their state, a JSON object a line; of all
                                       GPUs, or only those at the addresses
  shepherd-gpu cdi [--driver-root DIR] [--hook PROGRAM]
                                       a CDI spec of them, in YAML
  shepherd-gpu version`

// run runs the command in args. lib must not be initialized.
func run(ctx context.Context, lib nvml.Interface, args []string, out io.Writer) error {
	if len(args) == 0 {
		return &usageError{errors.New(usage)}
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	interval := flags.Duration("interval", gpu.DefaultInterval, "")
	pci := flags.String("pci", "", "")
	var spec specConfig
	flags.StringVar(&spec.DriverRoot, "driver-root", "/", "")
	flags.StringVar(&spec.DevRoot, "dev-root", "/", "")
	flags.StringVar(&spec.Hook, "hook", "", "")
	flags.StringVar(&spec.Mode, "mode", "auto", "")
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		return &usageError{errors.New(usage)}
	}
	if *interval < 10*time.Millisecond {
		return &usageError{errors.New("--interval: expected 10ms or longer")}
	}
	var command func(*driver) error
	switch args[0] {
	case "inventory":
		command = func(d *driver) error { return printInventory(d, out) }
	case "watch":
		command = func(d *driver) error { return watch(ctx, d, *interval, addresses(*pci), out) }
	case "cdi":
		command = func(d *driver) error { return printSpec(d, spec, out) }
	case "version":
		fmt.Fprintf(out, "shepherd-gpu %s (%s)\n", version, commit)
		return nil
	default:
		return &usageError{errors.New(usage)}
	}
	d, err := open(lib)
	if err != nil {
		return err // a further call of lib would end the process
	}
	defer lib.Shutdown()
	return command(d)
}

// addresses splits a list at commas.
func addresses(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

type usageError struct{ error }

// driverError is an error of the driver.
type driverError struct {
	operation string
	ret       nvml.Return
}

func (e *driverError) Error() string { return fmt.Sprintf("%s: %s", e.operation, errorText(e.ret)) }

// errorText describes an error. It calls NVML only for errors that NVML has returned.
func errorText(r nvml.Return) string {
	switch r {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return "libnvidia-ml.so.1 is not found: NVIDIA's driver is not installed"
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return "NVIDIA's driver is not loaded (modprobe nvidia)"
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return "NVIDIA's driver and its libraries are of different versions: restart the machine after an update of the driver"
	case nvml.ERROR_NO_PERMISSION:
		return "no permission to use NVIDIA's driver"
	case nvml.ERROR_GPU_IS_LOST:
		return "the GPU has fallen off the bus"
	case nvml.ERROR_FUNCTION_NOT_FOUND:
		return "NVIDIA's driver is too old"
	}
	return nvml.ErrorString(r)
}

// status returns the exit code.
func status(err error) int {
	var driver *driverError
	var wrong *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		return 2
	case !errors.As(err, &driver):
		return 1
	case driver.ret == nvml.ERROR_LIBRARY_NOT_FOUND, driver.ret == nvml.ERROR_DRIVER_NOT_LOADED:
		return gpu.ExitNoDriver
	}
	return gpu.ExitDriver
}
