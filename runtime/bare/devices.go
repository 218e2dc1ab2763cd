package bare

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/runtime"
)

// The environment variables by which CUDA and ROCm choose a process's GPUs.
const (
	cudaVisible = "CUDA_VISIBLE_DEVICES"
	cudaOrder   = "CUDA_DEVICE_ORDER"
	rocrVisible = "ROCR_VISIBLE_DEVICES"
	hipVisible  = "HIP_VISIBLE_DEVICES"
)

// visible returns the variables that make the granted GPUs, and no others of NVIDIA,
// visible to a runner. GPUs named by number keep it, with CUDA's device order set to that
// of PCI bus ids, which the driver and /dev/nvidiaN use; CUDA's default order begins with
// the fastest. A MIG instance is named by its UUID.
//
//	/dev/nvidia3, nvidia.com/gpu=3    3
//	nvidia.com/gpu=GPU-…, =MIG-…      GPU-…, MIG-…
//	nvidia.com/gpu=0:1                the UUID that the driver says it has
//	amd.com/gpu=0                     0, in ROCR_VISIBLE_DEVICES
//	all                               no variable
func visible(devices gpu.Devices, grants []gpu.Grant) (map[string]string, error) {
	var cuda, rocm []string
	numbers := false
	for _, g := range grants {
		name := g.Device.Name
		switch {
		case g.Device.Kind == gpu.AMD:
			rocm = append(rocm, name)
			continue
		case g.Instance != nil:
			name = g.Instance.UUID
		case g.Device.Node && g.GPU != nil:
			name = strconv.Itoa(g.GPU.Index)
		case strings.Contains(name, ":"):
			return nil, fmt.Errorf("the UUID of %s is not known, because NVIDIA's driver does not answer; name it as nvidia.com/gpu=MIG-UUID (nvidia-smi -L)", g.Device)
		}
		if _, err := strconv.Atoi(name); err == nil {
			numbers = true
		}
		cuda = append(cuda, name)
	}
	env := map[string]string{cudaVisible: strings.Join(cuda, ",")}
	if numbers {
		env[cudaOrder] = "PCI_BUS_ID"
	}
	if len(rocm) > 0 {
		env[rocrVisible] = strings.Join(rocm, ",")
	}
	for _, d := range devices.List {
		switch {
		case d.All() && d.Kind == gpu.NVIDIA:
			delete(env, cudaVisible)
			delete(env, cudaOrder)
		case d.All():
			delete(env, rocrVisible)
		}
	}
	return env, nil
}

// grants returns the sheep's GPUs.
func (p *programs) grants(ctx context.Context) ([]gpu.Grant, error) {
	if p.gpus != nil {
		grants, err := p.gpus(ctx, p.sheep)
		if err != nil && ctx.Err() == nil {
			return nil, &runtime.LoadError{Message: fmt.Sprintf("Sheep `%s` has no GPU: %v", p.sheep, err), Class: errdefs.Resolve(err)}
		}
		return grants, err
	}
	if p.options.Devices.Count > 0 {
		return nil, &runtime.LoadError{Message: fmt.Sprintf("Sheep `%s` has no GPU: there is no GPU keeper to choose %s", p.sheep, p.options.Devices), Class: errdefs.ErrFailedPrecondition}
	}
	var grants []gpu.Grant
	for _, d := range p.options.Devices.List {
		grants = append(grants, gpu.Grant{Device: d})
	}
	return grants, nil
}
