package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/internal/errtext"
)

// GPUs examines the driver, the CDI specs and whether sheep can get the GPUs that they
// request.
type GPUs struct {
	Requests []gpu.Request // of the sheep with GPUs
	// Containers means that container sheep are among them; Mode is how these get their
	// GPUs: auto, cdi or hook.
	Containers bool
	Mode       string
	CDIDirs    []string
	// Inventory queries the driver; its errors have the classes of gpu.Helper's.
	Inventory func(context.Context) (*gpu.Inventory, error)
}

// Name implements Check.
func (GPUs) Name() string { return "gpu" }

// Examine implements Check.
func (g GPUs) Examine(ctx context.Context) []Finding {
	inventory, err := g.Inventory(ctx)
	findings := g.driver(inventory, err)
	devices, described := g.specs()
	findings = append(findings, described...)
	if len(g.Requests) == 0 {
		return findings
	}
	_, problems := gpu.Allot(g.Requests, gpu.Machine{Inventory: inventory, CDI: devices})
	for _, p := range problems {
		findings = append(findings, failure("correct the sheep's devices", "%v", p))
	}
	if g.Containers && (g.Mode == "hook" || g.Mode == "auto" && !slices.ContainsFunc(devices, isNVIDIA) && g.asksNVIDIA()) {
		findings = append(findings, g.hook())
	}
	return append(findings, examineUnit(ctx)...)
}

func isNVIDIA(device string) bool { return strings.HasPrefix(device, gpu.NVIDIA+"=") }

func (g GPUs) asksNVIDIA() bool {
	return slices.ContainsFunc(g.Requests, func(r gpu.Request) bool { return r.Devices.Asks(gpu.NVIDIA) })
}

func (g GPUs) driver(inventory *gpu.Inventory, err error) []Finding {
	switch {
	case err == nil:
	case !g.asksNVIDIA() && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)):
		return []Finding{ok("no sheep uses an NVIDIA GPU")}
	case errdefs.IsNotFound(err):
		return []Finding{failure("install the driver, load it (modprobe nvidia), and have nvidia-smi show the GPUs", "no NVIDIA driver: %s", errtext.Of(err))}
	case errdefs.IsFailedPrecondition(err):
		return []Finding{failure("install it: the Debian package and the tarball contain it, `make build` builds it", "the driver cannot be queried: %s", errtext.Of(err))}
	default:
		return []Finding{failure("look at dmesg and nvidia-smi; reset the GPUs (nvidia-smi --gpu-reset), or restart the machine", "the NVIDIA driver does not answer: %s", errtext.Of(err))}
	}
	findings := []Finding{ok("driver %s, CUDA up to %s, %s", inventory.Driver, inventory.CUDA, plural(len(inventory.GPUs), "GPU"))}
	for _, one := range inventory.GPUs {
		findings = append(findings, health(one))
	}
	return findings
}

func health(one gpu.GPU) Finding {
	name := fmt.Sprintf("GPU %d, %s (%s)", one.Index, one.Name, one.UUID)
	const replace = "reset it (nvidia-smi --gpu-reset) or restart the machine; if it comes back, have it repaired"
	switch {
	case one.Lost:
		return failure("look at dmesg and restart the machine; if it happens again, check the GPU's power cable and slot", "%s has fallen off the bus", name)
	case one.RowRemapFailed:
		return failure("have it replaced", "%s has defective memory and no spare rows left to remap it", name)
	case one.ResetRequired:
		return failure(replace, "%s needs a reset", name)
	case one.Uncorrectable != nil && *one.Uncorrectable > 0:
		return warning(replace, "%s had %d uncorrectable memory errors since the driver was loaded", name, *one.Uncorrectable)
	}
	return ok("%s, %s", name, size.Bytes(one.Memory))
}

// specs reads the CDI specs and returns the devices that they describe.
func (g GPUs) specs() (devices []string, findings []Finding) {
	const renew = "write it again: nvidia-ctk cdi generate --output="
	cache, empty := cdi.Load(g.CDIDirs...)
	for _, path := range empty {
		findings = append(findings, failure(renew+path, "CDI spec %s: an entry of a list in it is empty, and no spec counts beside it", path))
	}
	broken := cache.GetErrors()
	for _, path := range sorted(broken) {
		if len(broken[path]) == 1 && errors.Is(broken[path][0], fs.ErrNotExist) {
			continue // a missing directory has no specs
		}
		findings = append(findings, failure(renew+path, "CDI spec %s: %v", path, errors.Join(broken[path]...)))
	}
	for _, vendor := range cache.ListVendors() {
		for _, spec := range cache.GetVendorSpecs(vendor) {
			if missing := missingPaths(spec.Spec); len(missing) > 0 {
				findings = append(findings, failure(renew+spec.GetPath(),
					"CDI spec %s is out of date: it names %s, which %s", spec.GetPath(), strings.Join(missing[:min(3, len(missing))], ", "), isNot(len(missing))))
			}
		}
	}
	devices = cache.ListDevices()
	if len(devices) > 0 {
		findings = append(findings, ok("CDI specs describe %s", strings.Join(devices, ", ")))
	}
	return devices, findings
}

func isNot(n int) string {
	if n == 1 {
		return "is not there"
	}
	return fmt.Sprintf("are not there (%d in all)", n)
}

// missingPaths are the files of a spec that do not exist on this machine, as after an
// upgrade of the driver.
func missingPaths(spec *cdispecs.Spec) []string {
	edits := []cdispecs.ContainerEdits{spec.ContainerEdits}
	for _, d := range spec.Devices {
		edits = append(edits, d.ContainerEdits)
	}
	var paths []string
	for _, e := range edits {
		for _, h := range e.Hooks {
			paths = append(paths, h.Path)
		}
		for _, m := range e.Mounts {
			paths = append(paths, m.HostPath)
		}
		for _, n := range e.DeviceNodes {
			path := n.HostPath
			if path == "" {
				path = n.Path
			}
			paths = append(paths, path)
		}
	}
	paths = slices.DeleteFunc(paths, func(path string) bool {
		_, err := os.Stat(path)
		return !filepath.IsAbs(path) || !errors.Is(err, fs.ErrNotExist)
	})
	slices.Sort(paths)
	return slices.Compact(paths)
}

// hook looks for NVIDIA's prestart hook, which gives containers GPUs without CDI.
func (g GPUs) hook() Finding {
	const name = "nvidia-container-runtime-hook"
	path, err := exec.LookPath(name)
	if err == nil {
		return ok("%s", path)
	}
	next := "install nvidia-container-toolkit"
	if g.Mode == "auto" {
		next += ", or have it write a CDI spec: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
	}
	return failure(next, "%s, which gives containers their GPUs, is not on PATH", name)
}

// examineUnit looks for settings of the unit that take GPUs from bare sheep, at once or at
// the next `systemctl daemon-reload`.
func examineUnit(ctx context.Context) []Finding {
	systemctl, err := exec.LookPath("systemctl")
	if err != nil {
		return nil
	}
	out, err := exec.CommandContext(ctx, systemctl, "show", "--property=DevicePolicy,PrivateDevices", "shepherdd.service").Output()
	if err != nil {
		return nil // systemd is not running
	}
	for line := range strings.Lines(string(out)) {
		switch setting := strings.TrimSpace(line); setting {
		case "DevicePolicy=closed", "DevicePolicy=strict", "PrivateDevices=yes":
			return []Finding{failure("remove it from the unit (systemctl edit shepherdd), or add DeviceAllow=char-nvidia* rw and DeviceAllow=/dev/nvidia-uvm rw",
				"shepherdd.service has %s: bare sheep lose their GPUs when systemd applies it, as it does at every `systemctl daemon-reload`", setting)}
		}
	}
	return nil
}
