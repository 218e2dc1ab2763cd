// Package cdi puts devices into containers as the machine's CDI specs (Container
// Device Interface, github.com/cncf-tags/container-device-interface) describe
// them: device nodes with their cgroup rules, libraries, hooks and variables.
// Any vendor's will do.
//
// Where the machine has no spec of NVIDIA's GPUs, one is made, and kept in a
// folder of shepherd's own that nobody else looks into. It is made anew when
// files that it names are gone, as after an update of the driver, and when it
// lacks a device, as after a change of MIG instances.
package cdi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/iterait/shepherd/gpu"
)

// Config says where specs are.
type Config struct {
	// Dirs are the machine's folders of specs; later ones take precedence.
	Dirs []string
	// Own is where a spec of NVIDIA's GPUs is kept that Generate made.
	Own string
	// Generate makes one; nil where it cannot be made. Its errors have a class of
	// errdefs.
	Generate func(ctx context.Context) ([]byte, error)
}

// Specs are the machine's CDI specs. What is in the folders is read again
// whenever it is asked for. It may be used from many goroutines.
type Specs struct {
	cfg Config

	mu   sync.Mutex // one generates
	made bool       // a spec was made in this process's life
}

// New makes Specs. It reads nothing.
func New(cfg Config) *Specs { return &Specs{cfg: cfg} }

// Devices are the names of the devices that the machine's own specs describe, and
// what is wrong with specs that cannot be read, which describe none.
func (s *Specs) Devices() ([]string, error) {
	host, err := read(s.cfg.Dirs...)
	return host.ListDevices(), err
}

// Edit returns what puts the devices into a container's spec, which is to be the
// last that is done to it. The error, with a class of errdefs, says what there is
// instead, or what to do.
func (s *Specs) Edit(ctx context.Context, grants []gpu.Grant) (func(*specs.Spec) error, error) {
	host, broken := read(s.cfg.Dirs...)
	names := make(map[*cdi.Cache][]string)
	caches := []*cdi.Cache{host}
	var ours []gpu.Grant
	for _, g := range grants {
		if g.Device.Kind == gpu.NVIDIA && len(ofKind(host, gpu.NVIDIA)) == 0 {
			ours = append(ours, g)
			continue
		}
		name, ok := find(host, g)
		if !ok {
			return nil, s.missing(host, g.Device, broken)
		}
		names[host] = append(names[host], name)
	}
	if len(ours) > 0 {
		own, found, err := s.own(ctx, ours)
		if err != nil {
			return nil, err
		}
		caches = append(caches, own)
		names[own] = found
	}
	return func(spec *specs.Spec) error {
		for _, c := range caches {
			if len(names[c]) == 0 {
				continue
			}
			if unresolved, err := c.InjectDevices(spec, names[c]...); err != nil {
				return fmt.Errorf("CDI devices %s: %w", strings.Join(append(unresolved, names[c]...), ", "), err)
			}
		}
		return nil
	}, nil
}

// Describes says whether the machine's own specs have a device of the kind.
func (s *Specs) Describes(kind string) bool {
	host, _ := read(s.cfg.Dirs...)
	return len(ofKind(host, kind)) > 0
}

// own is the spec that was made here, and the devices' names in it.
func (s *Specs) own(ctx context.Context, grants []gpu.Grant) (*cdi.Cache, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made {
		cache, broken := read(s.cfg.Own)
		if names, missing := findAll(cache, grants); broken == nil && missing == nil && whole(cache) {
			return cache, names, nil
		}
	}
	if err := s.make(ctx); err != nil {
		return nil, nil, err
	}
	s.made = true
	cache, broken := read(s.cfg.Own)
	names, missing := findAll(cache, grants)
	if missing != nil {
		return nil, nil, s.missing(cache, *missing, broken)
	}
	return cache, names, nil
}

// make writes the spec, whole or not at all.
func (s *Specs) make(ctx context.Context) error {
	if s.cfg.Generate == nil {
		return fmt.Errorf("there is no CDI spec for %s in %s: %w", gpu.NVIDIA, strings.Join(s.cfg.Dirs, ", "), errdefs.ErrFailedPrecondition)
	}
	text, err := s.cfg.Generate(ctx)
	if err != nil {
		return fmt.Errorf("there is no CDI spec for %s in %s, and none can be made: %w", gpu.NVIDIA, strings.Join(s.cfg.Dirs, ", "), err)
	}
	if err := os.MkdirAll(s.cfg.Own, 0o755); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	path := filepath.Join(s.cfg.Own, "nvidia.yaml")
	tmp := path + ".new" // which is no name of a spec
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	return nil
}

// missing says that a device is in no spec.
func (s *Specs) missing(cache *cdi.Cache, d gpu.Device, broken error) error {
	there := "there is no CDI spec for " + d.Kind
	if names := ofKind(cache, d.Kind); len(names) > 0 {
		there = "the CDI specs have " + strings.Join(names, ", ")
	}
	text := fmt.Sprintf("%s is not to be had: %s (in %s)", d, there, strings.Join(cache.GetSpecDirectories(), ", "))
	if broken != nil {
		text += "; a spec cannot be read: " + broken.Error()
	}
	return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition)
}

// read reads folders of specs. The library's own cache for all watches folders
// for ever; this one is a moment's.
func read(dirs ...string) (*cdi.Cache, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err == nil {
		err = cache.Refresh()
	}
	var broken []error
	for _, errs := range cache.GetErrors() {
		broken = append(broken, errs...)
	}
	if len(broken) > 0 {
		return cache, errors.Join(broken...)
	}
	return cache, err
}

func ofKind(cache *cdi.Cache, kind string) []string {
	return slices.DeleteFunc(cache.ListDevices(), func(name string) bool { return !strings.HasPrefix(name, kind+"=") })
}

func findAll(cache *cdi.Cache, grants []gpu.Grant) (names []string, missing *gpu.Device) {
	for _, g := range grants {
		name, ok := find(cache, g)
		if !ok {
			return nil, &g.Device
		}
		names = append(names, name)
	}
	return names, nil
}

// find returns the name that a spec has for what is granted. Specs differ: some
// have UUIDs, some indexes, some both.
func find(cache *cdi.Cache, g gpu.Grant) (string, bool) {
	candidates := []string{g.Device.Name}
	switch {
	case g.GPU == nil:
	case g.Instance != nil:
		candidates = []string{g.Instance.UUID, fmt.Sprintf("%d:%d", g.GPU.Index, g.Instance.Index), fmt.Sprintf("mig%d:%d", g.GPU.Index, g.Instance.Index)}
	default:
		candidates = []string{g.GPU.UUID, strconv.Itoa(g.GPU.Index), fmt.Sprintf("gpu%d", g.GPU.Index)}
	}
	vendor, class, ok := strings.Cut(g.Device.Kind, "/")
	if !ok {
		return "", false
	}
	for _, c := range candidates {
		if name := parser.QualifiedName(vendor, class, c); cache.GetDevice(name) != nil {
			return name, true
		}
	}
	return "", false
}

// whole says that the files which the specs name are there.
func whole(cache *cdi.Cache) bool {
	for _, vendor := range cache.ListVendors() {
		for _, spec := range cache.GetVendorSpecs(vendor) {
			edits := spec.ContainerEdits
			var files []string
			for _, m := range edits.Mounts {
				files = append(files, m.HostPath)
			}
			for _, h := range edits.Hooks {
				files = append(files, h.Path)
			}
			for _, d := range edits.DeviceNodes {
				files = append(files, cmp.Or(d.HostPath, d.Path))
			}
			for _, d := range spec.Devices {
				for _, n := range d.ContainerEdits.DeviceNodes {
					files = append(files, cmp.Or(n.HostPath, n.Path))
				}
			}
			for _, f := range files {
				if _, err := os.Stat(f); err != nil {
					return false
				}
			}
		}
	}
	return true
}
