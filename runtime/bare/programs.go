package bare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/mounts"
	"github.com/iterait/shepherd/internal/port"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
	"github.com/iterait/shepherd/shim"
)

// programs is the part of a bare sheep that differs from other sheep types: its runners
// are programs that the shim starts.
type programs struct {
	sheep   string
	options Options
	gpus    func(ctx context.Context, sheep string) ([]gpu.Grant, error)

	mu      sync.Mutex
	visible map[string]string // environment variables that select the GPUs, set by Load
}

var (
	_ shimmed.Type         = (*programs)(nil)
	_ runtime.ModelFinder  = (*programs)(nil)
	_ runtime.ModelAdviser = (*programs)(nil)
)

// FindModel checks that the model's configuration exists. See runtime.ModelFinder.
func (p *programs) FindModel(m job.Model) error {
	path := filepath.Join(p.options.WorkingDirectory, configPath(m))
	info, err := os.Stat(path)
	switch {
	case err != nil && !isMissing(err):
		return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: errdefs.ErrPermissionDenied}
	case err != nil && p.unmounted(path) != nil:
		return nil // whether the model exists is not known; Load returns the error
	case err != nil || info.IsDir():
		return &runtime.LoadError{
			Message: fmt.Sprintf("Cannot load model `%s:%s`, file `%s` does not exist.", m.Name, m.Version, path),
			Class:   errdefs.ErrNotFound,
		}
	}
	return nil
}

// isMissing reports whether an error of stat means that there is no such file, also because a
// file is in the place of a directory above it.
func isMissing(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// ModelAdvice says which directory or file is missing or cannot be read, or which program
// runs the model. See runtime.ModelAdviser.
func (p *programs) ModelAdvice(m job.Model) string {
	dir, file := filepath.Split(filepath.Join(p.options.WorkingDirectory, configPath(m)))
	dir = filepath.Clean(dir)
	if _, err := os.Stat(dir); isMissing(err) {
		return fmt.Sprintf("A bare sheep runs it once there is a directory `%s` with a `%s`.", dir, file)
	}
	switch err := p.FindModel(m); {
	case errdefs.IsPermissionDenied(err):
		return fmt.Sprintf("The daemon must be able to read `%s`; the reason says why it is not.", filepath.Join(dir, file))
	case err != nil:
		return fmt.Sprintf("A bare sheep runs it once there is a file `%s` in `%s`.", file, dir)
	}
	return fmt.Sprintf("A bare sheep runs it with the program `%s`, which reads `%s`.", p.options.command(m, 0)[0], filepath.Join(dir, file))
}

// unmounted returns a *LoadError of class errdefs.ErrUnavailable if the file system of
// path is not mounted yet.
func (p *programs) unmounted(path string) error {
	point, err := mounts.Missing(path)
	if err != nil || point == "" {
		return nil
	}
	return &runtime.LoadError{
		Message: fmt.Sprintf("The models cannot be read: nothing is mounted on %s, though %s or a mount unit lists it", point, mounts.Table),
		Class:   errdefs.ErrUnavailable,
	}
}

// Load checks that the model and a program to run it exist, and gets the sheep's GPUs.
func (p *programs) Load(ctx context.Context, m job.Model, _ runtime.Observer) error {
	if err := p.FindModel(m); err != nil {
		return err
	}
	if err := p.unmounted(filepath.Join(p.options.WorkingDirectory, configPath(m))); err != nil {
		return err
	}
	grants, err := p.grants(ctx)
	if err != nil {
		return err
	}
	env, err := visible(p.options.Devices, grants)
	if err != nil {
		return &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrFailedPrecondition}
	}
	p.mu.Lock()
	p.visible = env
	p.mu.Unlock()
	_, err = p.program(m, 0)
	return err
}

// program returns the runner's command, environment and output files.
func (p *programs) program(m job.Model, port int) (*shim.Process, error) {
	words := p.options.command(m, port)
	p.mu.Lock()
	env := p.options.environment(os.Environ(), p.visible)
	p.mu.Unlock()
	path, err := findProgram(words[0], p.options.WorkingDirectory, env)
	if err != nil {
		return nil, &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrFailedPrecondition}
	}
	return &shim.Process{
		Path: path, Args: words[1:], Dir: p.options.WorkingDirectory, Env: env,
		Stdout: p.options.StdoutFile, Stderr: p.options.StderrFile,
	}, nil
}

// Prepare fills in the spec's port and runner. See shimmed.Type.
func (p *programs) Prepare(spec *shim.Spec) (err error) {
	spec.Port = p.options.Port
	if spec.Port == 0 {
		if spec.Port, err = port.Free("127.0.0.1"); err != nil {
			return &runtime.LoadError{Message: fmt.Sprintf("no free port for the runner: %v", err), Class: errdefs.ErrUnavailable}
		}
	}
	spec.Runner, err = p.program(spec.Model, spec.Port)
	return err
}

// Launch has nothing to do: the shim starts the program.
func (p *programs) Launch(context.Context, func() (*shim.Handle, error), string, shim.Spec) error {
	return nil
}

// Clean has nothing to do: the shim, or shim.Settle, has killed all processes.
func (p *programs) Clean(context.Context, shim.Spec, *shim.Exit) error { return nil }
