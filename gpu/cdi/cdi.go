// Package cdi injects devices into containers as the machine's CDI specs (Container
// Device Interface, github.com/cncf-tags/container-device-interface) describe them:
// device nodes with their cgroup rules, libraries, hooks and environment variables. It
// works with any vendor's specs.
//
// If the machine has no usable spec of NVIDIA's GPUs, one is generated, and stored in a
// directory that only shepherd reads. It is generated again when files that it names do
// not exist any more (after a driver update), and when it lacks a device (after a change
// of MIG instances).
package cdi

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// Config configures where specs are.
type Config struct {
	// Dirs are the machine's directories of specs; later ones take precedence.
	Dirs []string
	// Own is the directory of the generated spec of NVIDIA's GPUs.
	Own string
	// Generate generates that spec; nil if it cannot be generated. Its errors have a
	// class of errdefs.
	Generate func(ctx context.Context) ([]byte, error)
}

// Specs are the machine's CDI specs. Each call reads the directories anew. It may be used
// from many goroutines.
type Specs struct {
	cfg Config

	mu   sync.Mutex // held while a spec is generated
	made bool       // this process has generated a spec
}

// New makes Specs. It reads nothing.
func New(cfg Config) *Specs { return &Specs{cfg: cfg} }

// Devices returns the names of the devices in the machine's specs. The error lists each
// spec that cannot be used, why, and what to do about it; the devices of the other specs
// are returned with it.
func (s *Specs) Devices() ([]string, error) {
	host, unusable := read(s.cfg.Dirs...)
	return host.ListDevices(), unusable.err("")
}

// Edit returns the edit that injects the devices into a container's spec. It must be the
// last edit of the spec. The error, of a class of errdefs, lists the devices that exist
// or says what to do.
func (s *Specs) Edit(ctx context.Context, grants []gpu.Grant) (func(*specs.Spec) error, error) {
	host, unusable := read(s.cfg.Dirs...)
	names := make(map[*cdi.Cache][]string)
	caches := []*cdi.Cache{host}
	var ours []gpu.Grant
	for _, g := range grants {
		if g.Device.Kind == gpu.NVIDIA && len(ofKind(host, gpu.NVIDIA)) == 0 {
			ours = append(ours, g)
			continue
		}
		name, ok := find(host, g, grants)
		if !ok {
			return nil, missing(host, g.Device, unusable)
		}
		if !slices.Contains(names[host], name) {
			names[host] = append(names[host], name)
		}
	}
	if len(ours) > 0 {
		own, found, err := s.own(ctx, ours, unusable)
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

// Describes reports whether the machine's specs have a device of the kind.
func (s *Specs) Describes(kind string) bool {
	host, _ := read(s.cfg.Dirs...)
	return len(ofKind(host, kind)) > 0
}

// own returns the generated spec, and the names of the granted devices in it.
func (s *Specs) own(ctx context.Context, grants []gpu.Grant, host problems) (*cdi.Cache, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made {
		cache, unusable := read(s.cfg.Own)
		if names, absent := findAll(cache, grants); len(unusable) == 0 && absent == nil && filesExist(cache) {
			return cache, names, nil
		}
	}
	if err := s.generate(ctx, host); err != nil {
		return nil, nil, err
	}
	s.made = true
	cache, unusable := read(s.cfg.Own)
	names, absent := findAll(cache, grants)
	if absent != nil {
		return nil, nil, missing(cache, *absent, unusable)
	}
	return cache, names, nil
}

// generate generates the spec and writes it atomically. Its error begins with the
// problems of the machine's specs.
func (s *Specs) generate(ctx context.Context, host problems) error {
	why := fmt.Sprintf("there is no CDI spec for %s in %s", gpu.NVIDIA, strings.Join(s.cfg.Dirs, ", "))
	if about := host.about(gpu.NVIDIA); len(about) > 0 {
		why = fmt.Sprintf("the CDI specs for %s cannot be used: %s", gpu.NVIDIA, about)
	}
	if s.cfg.Generate == nil {
		return fmt.Errorf("%s: %w", why, errdefs.ErrFailedPrecondition)
	}
	text, err := s.cfg.Generate(ctx)
	if err != nil {
		return fmt.Errorf("%s; and none can be generated: %w", why, err)
	}
	if err := os.MkdirAll(s.cfg.Own, 0o755); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	path := filepath.Join(s.cfg.Own, "nvidia.yaml")
	tmp := path + ".new" // CDI ignores files with this extension
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep the CDI spec: %w", err)
	}
	return nil
}

// missing returns the error for a device that no usable spec has.
func missing(cache *cdi.Cache, d gpu.Device, unusable problems) error {
	dirs := strings.Join(cache.GetSpecDirectories(), ", ")
	names, about := ofKind(cache, d.Kind), unusable.about(d.Kind)
	var text string
	switch {
	case len(names) > 0:
		text = fmt.Sprintf("%s is not found: the CDI specs in %s have %s", d, dirs, strings.Join(names, ", "))
	case len(about) > 0:
		text = fmt.Sprintf("%s is not found", d)
	default:
		text = fmt.Sprintf("%s is not found: there is no CDI spec for %s in %s", d, d.Kind, dirs)
	}
	if len(about) > 0 {
		text += "; these CDI specs cannot be used: " + about.String()
	}
	return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition)
}

func ofKind(cache *cdi.Cache, kind string) []string {
	return slices.DeleteFunc(cache.ListDevices(), func(name string) bool { return !strings.HasPrefix(name, kind+"=") })
}

func findAll(cache *cdi.Cache, grants []gpu.Grant) (names []string, missing *gpu.Device) {
	for _, g := range grants {
		name, ok := find(cache, g, grants)
		if !ok {
			return nil, &g.Device
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// find returns the name of a grant's device in a spec. Specs differ: some name devices by
// UUID, some by index, some both, and some have only `all`, which is used if the sheep has
// all GPUs.
func find(cache *cdi.Cache, g gpu.Grant, grants []gpu.Grant) (string, bool) {
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
	every := parser.QualifiedName(vendor, class, gpu.Every)
	if d := cache.GetDevice(every); d != nil && (g.Whole || g.GPU == nil && sole(d, g, grants)) {
		return every, true
	}
	return "", false
}

// sole reports whether the device `all` seems to be the one GPU that is granted, for a
// grant by number when the driver could not be asked.
func sole(all *cdi.Device, g gpu.Grant, grants []gpu.Grant) bool {
	if g.Device.Kind != gpu.NVIDIA || g.Device.Name != "0" || len(grants) != 1 {
		return false
	}
	nodes := 0
	for _, n := range all.ContainerEdits.DeviceNodes {
		if gpuNode.MatchString(n.Path) {
			nodes++
		}
	}
	return nodes <= 1 && len(all.GetSpec().Devices) == 1
}

// gpuNode matches the device node of an NVIDIA GPU.
var gpuNode = regexp.MustCompile(`^/dev/nvidia[0-9]+$`)

// filesExist reports whether all files that the specs name exist.
func filesExist(cache *cdi.Cache) bool {
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
