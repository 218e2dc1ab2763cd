//go:build cgo

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/iterait/shepherd/gpu"
)

// driver is the initialized NVML library. Calling a function that an older driver does
// not have ends the process, so can is called before.
type driver struct{ lib nvml.Interface }

// open initializes NVML. After an error no other function of it may be called.
func open(lib nvml.Interface) (*driver, error) {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return nil, &driverError{"start NVML", ret}
	}
	return &driver{lib}, nil
}

// can reports whether the driver has a function.
func (d *driver) can(function string) bool {
	return d.lib.Extensions().LookupSymbol(function) == nil
}

// handle is an opened GPU, with the properties that do not change while the driver is
// loaded. The device is nil if the GPU is lost.
type handle struct {
	gpu.GPU
	device    nvml.Device
	instances map[[2]int]string // MIG's UUIDs, by the ids of GPU and compute instance
}

func printInventory(d *driver, out io.Writer) error {
	inv := gpu.Inventory{GPUs: []gpu.GPU{}}
	var ret nvml.Return
	if inv.Driver, ret = d.lib.SystemGetDriverVersion(); ret != nvml.SUCCESS {
		return &driverError{"ask for the driver's version", ret}
	}
	if v, ret := d.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		inv.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	handles, err := d.handles()
	if err != nil {
		return err
	}
	for _, c := range handles {
		if c.device != nil {
			c.State = d.state(c)
		}
		inv.GPUs = append(inv.GPUs, c.GPU)
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(inv)
}

// handles opens all GPUs. One that does not answer is included as lost.
func (d *driver) handles() ([]*handle, error) {
	count, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, &driverError{"count GPUs", ret}
	}
	var handles []*handle
	for i := range count {
		device, ret := d.lib.DeviceGetHandleByIndex(i)
		c, err := d.identified(gpu.GPU{Index: i, Minor: i}, fmt.Sprintf("GPU %d", i), device, ret)
		if err != nil {
			return nil, err
		}
		handles = append(handles, c)
	}
	return handles, nil
}

// handlesAt opens the GPUs at PCI addresses, and no others.
func (d *driver) handlesAt(pci []string) ([]*handle, error) {
	var handles []*handle
	for _, address := range pci {
		device, ret := d.lib.DeviceGetHandleByPciBusId(address)
		g := gpu.GPU{PCI: address}
		if ret == nvml.SUCCESS {
			if index, ret := device.GetIndex(); ret == nvml.SUCCESS {
				g.Index, g.Minor = index, index
			}
		}
		c, err := d.identified(g, "the GPU at "+address, device, ret)
		if err != nil {
			return nil, err
		}
		handles = append(handles, c)
	}
	return handles, nil
}

// identified returns the handle of a GPU; ret is the result of opening it.
func (d *driver) identified(g gpu.GPU, name string, device nvml.Device, ret nvml.Return) (*handle, error) {
	c := &handle{GPU: g, instances: make(map[[2]int]string)}
	if ret == nvml.SUCCESS {
		ret = d.identify(c, device)
	}
	switch ret {
	case nvml.SUCCESS:
		c.device = device
		return c, nil
	case nvml.ERROR_NO_PERMISSION, nvml.ERROR_UNINITIALIZED:
		return nil, &driverError{"ask " + name, ret}
	}
	// Drivers report a broken GPU with different errors. The other GPUs can be used.
	fmt.Fprintln(os.Stderr, (&driverError{name + " does not answer", ret}).Error())
	c.Lost, c.ResetRequired = true, ret == nvml.ERROR_RESET_REQUIRED
	return c, nil
}

// identify reads the properties that do not change.
func (d *driver) identify(c *handle, device nvml.Device) (ret nvml.Return) {
	if c.UUID, ret = device.GetUUID(); ret != nvml.SUCCESS {
		return ret
	}
	if c.Name, ret = device.GetName(); ret != nvml.SUCCESS {
		return ret
	}
	if minor, ret := device.GetMinorNumber(); ret == nvml.SUCCESS {
		c.Minor = minor
	}
	if pci, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		c.PCI = address(pci)
	}
	memory, ret := device.GetMemoryInfo()
	if ret == nvml.SUCCESS {
		c.Memory = memory.Total
	} else if ret == nvml.ERROR_GPU_IS_LOST {
		return ret
	}
	if !d.can("nvmlDeviceGetMigMode") {
		return nvml.SUCCESS
	}
	if mode, _, ret := device.GetMigMode(); ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE {
		c.MIGMode = true
		d.partition(c, device)
	}
	return nvml.SUCCESS
}

// address formats a PCI address like the kernel: "0000:3b:00.0" instead of NVML's
// "00000000:3B:00.0".
func address(pci nvml.PciInfo) string {
	var b strings.Builder
	for _, c := range pci.BusId {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	text := strings.ToLower(b.String())
	if domain, rest, ok := strings.Cut(text, ":"); ok && len(domain) == 8 && strings.HasPrefix(domain, "0000") {
		return domain[4:] + ":" + rest
	}
	return text
}

// partition reads the MIG instances.
func (d *driver) partition(c *handle, device nvml.Device) {
	count, ret := device.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return
	}
	for i := range count {
		mig, ret := device.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // there is no instance of this number
		}
		m := gpu.Instance{Index: i}
		if m.UUID, ret = mig.GetUUID(); ret != nvml.SUCCESS {
			continue
		}
		if name, ret := mig.GetName(); ret == nvml.SUCCESS {
			_, m.Profile, _ = strings.Cut(name, "MIG ")
		}
		if memory, ret := mig.GetMemoryInfo(); ret == nvml.SUCCESS {
			m.Memory, m.Used = memory.Total, memory.Used
		}
		of, ret := mig.GetGpuInstanceId()
		compute, ret2 := mig.GetComputeInstanceId()
		if ret == nvml.SUCCESS && ret2 == nvml.SUCCESS {
			c.instances[[2]int{of, compute}] = m.UUID
		}
		c.MIG = append(c.MIG, m)
	}
}

// state reads a GPU's state.
func (d *driver) state(c *handle) gpu.State {
	if c.device == nil {
		return gpu.State{Lost: true}
	}
	var s gpu.State
	memory, ret := c.device.GetMemoryInfo()
	if ret == nvml.ERROR_GPU_IS_LOST {
		return gpu.State{Lost: true}
	}
	s.Used = memory.Used
	s.ResetRequired = ret == nvml.ERROR_RESET_REQUIRED
	if u, ret := c.device.GetUtilizationRates(); ret == nvml.SUCCESS {
		s.Utilization = new(int(u.Gpu))
	}
	if p, ret := c.device.GetPowerUsage(); ret == nvml.SUCCESS {
		s.Power = new(float64(p) / 1000) // from milliwatts
	}
	if t, ret := c.device.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		s.Temperature = new(int(t))
	}
	if n, ret := c.device.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS {
		s.Uncorrectable = new(n)
	}
	if d.can("nvmlDeviceGetRemappedRows") {
		_, _, _, failed, ret := c.device.GetRemappedRows()
		s.RowRemapFailed = ret == nvml.SUCCESS && failed
	}
	s.ResetRequired = s.ResetRequired || d.recovery(c)
	s.Processes = d.processes(c)
	return s
}

// recovery reports whether the driver recommends a reset of the GPU or a reboot.
func (d *driver) recovery(c *handle) bool {
	if !d.can("nvmlDeviceGetFieldValues") {
		return false
	}
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if ret := c.device.GetFieldValues(values); ret != nvml.SUCCESS || nvml.Return(values[0].NvmlReturn) != nvml.SUCCESS {
		return false // older drivers do not have the field
	}
	v := values[0].Value
	action := nvml.DeviceGpuRecoveryAction(uint32(v[0]) | uint32(v[1])<<8 | uint32(v[2])<<16 | uint32(v[3])<<24)
	return action == nvml.GPU_RECOVERY_ACTION_GPU_RESET || action == nvml.GPU_RECOVERY_ACTION_NODE_REBOOT
}

// processes lists the processes that use memory of a GPU, once for each MIG instance.
func (d *driver) processes(c *handle) []gpu.Process {
	const unknown = ^uint64(0) // NVML_VALUE_NOT_AVAILABLE
	var list []gpu.Process
	seen := make(map[gpu.Process]bool)
	for _, ask := range []func() ([]nvml.ProcessInfo, nvml.Return){c.device.GetComputeRunningProcesses, c.device.GetGraphicsRunningProcesses} {
		infos, ret := ask()
		if ret != nvml.SUCCESS {
			continue
		}
		for _, info := range infos {
			p := gpu.Process{PID: int(info.Pid), MIG: c.instances[[2]int{int(info.GpuInstanceId), int(info.ComputeInstanceId)}]}
			if seen[p] {
				continue
			}
			seen[p] = true
			if info.UsedGpuMemory != unknown {
				p.Used = info.UsedGpuMemory
			}
			list = append(list, p)
		}
	}
	return list
}

// line writes a value as one line of JSON, with one call of Write.
func line(out io.Writer, v any) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	_, err := out.Write(b.Bytes())
	return err
}
