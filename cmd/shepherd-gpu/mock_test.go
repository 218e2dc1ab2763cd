//go:build cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

// A machine is a go-nvml mock of a DGX with 8 GPUs, with what the mock leaves
// out: GPUs that are used and measured, whose UUIDs are known beforehand.
type machine struct {
	*server.Server
	devices []*server.Device
}

func machines() map[string]func() machine {
	return map[string]func() machine{
		"dgxa100": func() machine { return furnish(dgxa100.New()) },
		"dgxh100": func() machine { return furnish(dgxh100.New()) },
	}
}

func uuidOf(i int) string { return fmt.Sprintf("GPU-%08x-d72c-4106-c12f-20bd9faed9f6", i) }

func furnish(s *server.Server) machine {
	m := machine{Server: s}
	s.LookupSymbolFunc = func(symbol string) error { return nil }
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }
	for i := range s.Devices {
		d := s.Devices[i].(*server.Device)
		d.UUID = uuidOf(i)
		pci := nvml.PciInfo{}
		for j, c := range fmt.Sprintf("00000000:%02X:00.0", 0x30+i) {
			pci.BusId[j] = int8(c)
		}
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return pci, nvml.SUCCESS }
		d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 80 << 30, Used: uint64(i) << 30}, nvml.SUCCESS
		}
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: uint32(10 * i)}, nvml.SUCCESS }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 75_500, nvml.SUCCESS }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 41, nvml.SUCCESS }
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
		d.GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
			values[0].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
			return nvml.SUCCESS
		}
		none := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
		d.GetComputeRunningProcessesFunc, d.GetGraphicsRunningProcessesFunc = none, none
		d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
		d.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
		d.GetAddressingModeFunc = func() (nvml.DeviceAddressingMode, nvml.Return) {
			return nvml.DeviceAddressingMode{}, nvml.ERROR_NOT_SUPPORTED
		}
		m.devices = append(m.devices, d)
	}
	return m
}

// split puts a GPU into MIG mode, with one instance, which is number 1.
func (m machine) split(i int) {
	d := m.devices[i]
	d.GetMigModeFunc = func() (int, int, nvml.Return) { return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS }
	mig := &mock.Device{
		GetUUIDFunc:              func() (string, nvml.Return) { return fmt.Sprintf("MIG-%08x", i), nvml.SUCCESS },
		GetNameFunc:              func() (string, nvml.Return) { return d.Config.Name + " MIG 3g.40gb", nvml.SUCCESS },
		GetMemoryInfoFunc:        func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 40 << 30, Used: 1 << 20}, nvml.SUCCESS },
		GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return 2, nvml.SUCCESS },
		GetComputeInstanceIdFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS },
	}
	d.GetMigDeviceHandleByIndexFunc = func(j int) (nvml.Device, nvml.Return) {
		if j != 1 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return mig, nvml.SUCCESS
	}
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 42, UsedGpuMemory: 1 << 20, GpuInstanceId: 2, ComputeInstanceId: 0}}, nvml.SUCCESS
	}
}

// lose has a GPU fall off the bus.
func (m machine) lose(i int) {
	d := m.devices[i]
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	d.GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
}

// age takes functions away that older drivers do not have; to call one of them
// would end a real process.
func (m machine) age() {
	m.LookupSymbolFunc = func(symbol string) error { return errors.New(symbol + " is not found") }
	for _, d := range m.devices {
		d.GetMigModeFunc, d.GetRemappedRowsFunc, d.GetFieldValuesFunc = nil, nil, nil
	}
	m.EventSetCreateFunc = nil
}

const driverVersion = "550.54.15" // the mocks'

// driverRoot makes the files of a driver for n GPUs: real character devices, and
// libraries that hold their own name.
func driverRoot(t *testing.T, n int) string {
	t.Helper()
	root := t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	const lib = "usr/lib/x86_64-linux-gnu/"
	for _, name := range []string{"libcuda.so.", "libnvidia-ml.so.", "libnvidia-ptxjitcompiler.so."} {
		write(lib+name+driverVersion, "made-up "+name+"\n", 0o644)
		if err := os.Symlink(name+driverVersion, filepath.Join(root, lib, name+"1")); err != nil {
			t.Fatal(err)
		}
	}
	write("usr/bin/nvidia-smi", "#!/bin/sh\necho made-up\n", 0o755)
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	node := func(name string, major, minor uint32) {
		err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
		if errors.Is(err, unix.EPERM) {
			testenv.Missing(t, "the right to make device nodes", "run the tests as root")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, "dev", name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		node(fmt.Sprint("nvidia", i), 195, uint32(i))
	}
	node("nvidiactl", 195, 255)
	node("nvidia-uvm", 510, 0)
	node("nvidia-uvm-tools", 510, 1)
	return root
}
