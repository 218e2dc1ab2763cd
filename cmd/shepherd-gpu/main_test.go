//go:build cgo

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/gpu"
)

var update = flag.Bool("update", false, "rewrite the expected specs")

// The test program is nvidia-cdi-hook as the real one is.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == hookName {
		os.Exit(hook(os.Args))
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

func inventory(t *testing.T, m machine) gpu.Inventory {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), m, []string{"inventory"}, &out); err != nil {
		t.Fatal(err)
	}
	var inv gpu.Inventory
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&inv); err != nil {
		t.Fatal(err)
	}
	return inv
}

func TestInventory(t *testing.T) {
	for name, new := range machines() {
		t.Run(name, func(t *testing.T) {
			m := new()
			m.split(2)
			m.lose(3)
			m.devices[1].GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
				return []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: 1 << 30}, {Pid: 8, UsedGpuMemory: ^uint64(0)}}, nvml.SUCCESS
			}
			m.devices[1].GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
				return []nvml.ProcessInfo{{Pid: 7}}, nvml.SUCCESS
			}
			m.devices[4].GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 1, true, true, nvml.SUCCESS }
			m.devices[4].GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 3, nvml.SUCCESS }
			m.devices[5].GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
				values[0].Value[0] = byte(nvml.GPU_RECOVERY_ACTION_GPU_RESET)
				return nvml.SUCCESS
			}
			handle := m.DeviceGetHandleByIndexFunc
			m.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
				switch i {
				case 6:
					return nil, nvml.ERROR_UNKNOWN
				case 7:
					return nil, nvml.ERROR_RESET_REQUIRED
				}
				return handle(i)
			}
			inv := inventory(t, m)
			if inv.Driver != driverVersion || inv.CUDA != "12.4" || len(inv.GPUs) != 8 {
				t.Fatalf("got %+v", inv)
			}
			g := inv.GPUs[1]
			if g.Index != 1 || g.Minor != 1 || g.UUID != uuidOf(1) || g.PCI != "0000:31:00.0" || g.Memory != 80<<30 || g.Used != 1<<30 ||
				*g.Utilization != 10 || *g.Power != 75.5 || *g.Temperature != 41 || *g.Uncorrectable != 0 || !strings.Contains(g.Name, "100") {
				t.Errorf("got %+v", g)
			}
			if !slices.Equal(g.Processes, []gpu.Process{{PID: 7, Used: 1 << 30}, {PID: 8}}) {
				t.Errorf("got %+v", g.Processes)
			}
			split := inv.GPUs[2]
			if !split.MIGMode || split.Utilization != nil || !slices.Equal(split.Processes, []gpu.Process{{PID: 42, Used: 1 << 20, MIG: "MIG-00000002"}}) ||
				!slices.Equal(split.MIG, []gpu.Instance{{Index: 1, UUID: "MIG-00000002", Profile: "3g.40gb", Memory: 40 << 30, Used: 1 << 20}}) {
				t.Errorf("got %+v", split)
			}
			for i := 3; i < 8; i++ {
				if g := inv.GPUs[i]; g.Lost != (i == 3 || i > 5) || g.Index != i || (g.UUID == "") != g.Lost || i == 7 && !g.ResetRequired {
					t.Errorf("got %+v", g)
				}
			}
			if g := inv.GPUs[4]; !g.RowRemapFailed || *g.Uncorrectable != 3 || g.ResetRequired {
				t.Errorf("got %+v", g)
			}
			if g := inv.GPUs[5]; !g.ResetRequired {
				t.Errorf("got %+v", g)
			}
		})
	}
}

// What an old driver does not have is not called.
func TestOldDriver(t *testing.T) {
	m := machines()["dgxa100"]()
	m.age()
	if inv := inventory(t, m); len(inv.GPUs) != 8 || inv.GPUs[0].MIGMode || inv.GPUs[7].Memory != 80<<30 {
		t.Errorf("got %+v", inv)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := 0
	err := run(ctx, m, []string{"watch", "--interval", "10ms"}, writerFunc(func([]byte) (int, error) {
		if lines++; lines == 16 {
			cancel()
		}
		return 0, nil
	}))
	if err != nil || lines < 16 {
		t.Errorf("got %v after %d lines", err, lines)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// After Init has failed, a call of a real NVML would end the process: the mock's
// other functions are missing, and would, too.
func TestStatus(t *testing.T) {
	for ret, want := range map[nvml.Return]int{
		nvml.ERROR_LIBRARY_NOT_FOUND: gpu.ExitNoDriver, nvml.ERROR_DRIVER_NOT_LOADED: gpu.ExitNoDriver,
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: gpu.ExitDriver, nvml.ERROR_NO_PERMISSION: gpu.ExitDriver,
	} {
		for _, command := range []string{"inventory", "watch", "cdi"} {
			lib := &mock.Interface{InitFunc: func() nvml.Return { return ret }}
			err := run(t.Context(), lib, []string{command}, io.Discard)
			if got := status(err); got != want || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, %d: got %v, status %d", command, ret, err, got)
			}
		}
	}
	m := machines()["dgxa100"]()
	m.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NO_PERMISSION }
	if err := run(t.Context(), m, []string{"inventory"}, io.Discard); status(err) != gpu.ExitDriver || !strings.Contains(err.Error(), "GPU 0") {
		t.Errorf("got %v", err)
	}
	for _, args := range [][]string{{}, {"nothing"}, {"inventory", "more"}, {"watch", "--interval", "0s"}, {"cdi", "--what"}} {
		if err := run(t.Context(), &mock.Interface{}, args, io.Discard); status(err) != 2 {
			t.Errorf("%q: got %v", args, err)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), &mock.Interface{}, []string{"version"}, &out); err != nil || !strings.HasPrefix(out.String(), "shepherd-gpu") {
		t.Errorf("got %s, %v", &out, err)
	}
}

// Every GPU is told of at once and again, one that is lost on the way as lost,
// and an Xid as it comes.
func TestWatch(t *testing.T) {
	m := machines()["dgxh100"]()
	m.split(2)
	fired := map[int]chan nvml.EventData{}
	for i := range m.devices {
		fired[i] = make(chan nvml.EventData, 1)
	}
	fired[1] <- nvml.EventData{Device: m.devices[1], EventData: 79, GpuInstanceId: ^uint32(0), ComputeInstanceId: ^uint32(0)}
	fired[2] <- nvml.EventData{Device: m.devices[2], EventData: 13, GpuInstanceId: 2, ComputeInstanceId: 0}
	var made, freed atomic.Int32
	var mu sync.Mutex
	registered := map[nvml.EventSet][]int{}
	m.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		made.Add(1)
		set := new(mock.EventSet)
		set.FreeFunc = func() nvml.Return { freed.Add(1); return nvml.SUCCESS }
		set.WaitFunc = func(patience uint32) (nvml.EventData, nvml.Return) {
			mu.Lock()
			in := registered[set]
			mu.Unlock()
			if slices.Contains(in, 3) { // a lost GPU makes every wait on its set fail
				return nvml.EventData{}, nvml.ERROR_GPU_IS_LOST
			}
			select {
			case e := <-fired[in[0]]:
				return e, nvml.SUCCESS
			case <-time.After(10 * time.Millisecond):
				return nvml.EventData{}, nvml.ERROR_TIMEOUT
			}
		}
		return set, nvml.SUCCESS
	}
	for i, d := range m.devices {
		d.RegisterEventsFunc = func(kinds uint64, set nvml.EventSet) nvml.Return {
			if i == 7 {
				return nvml.ERROR_NOT_SUPPORTED
			}
			mu.Lock()
			defer mu.Unlock()
			registered[set] = append(registered[set], i)
			return nvml.SUCCESS
		}
	}
	memory := m.devices[3].GetMemoryInfoFunc
	asked := 0
	m.devices[3].GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		if asked++; asked > 2 { // once to know it, once to tell
			return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST
		}
		return memory()
	}

	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, m, []string{"watch", "--interval", "20ms"}, w)
		w.Close()
	}()
	told, lost := map[string]int{}, false
	xids := map[string]gpu.Xid{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var s gpu.Sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil || s.Time.IsZero() {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		switch {
		case s.Xid != nil:
			xids[s.UUID] = *s.Xid
		case s.Lost:
			lost = lost || s.UUID == uuidOf(3)
		default:
			told[s.UUID]++
		}
		if len(xids) == 2 && lost && told[uuidOf(7)] > 2 {
			cancel()
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(told) != 8 || told[uuidOf(3)] != 1 || xids[uuidOf(1)] != (gpu.Xid{Code: 79}) || xids[uuidOf(2)] != (gpu.Xid{Code: 13, MIG: "MIG-00000002"}) || made.Load() != 8 || freed.Load() != 8 {
		t.Errorf("got %v, %v", told, xids)
	}
}

// samples runs a watch until the predicate says that it has seen enough.
func samples(t *testing.T, m machine, args []string, enough func([]gpu.Sample) bool) []gpu.Sample {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var seen []gpu.Sample
	err := run(ctx, m, append([]string{"watch", "--interval", "10ms"}, args...), writerFunc(func(p []byte) (int, error) {
		var s gpu.Sample
		if err := json.Unmarshal(p, &s); err != nil || s.Time.IsZero() {
			t.Errorf("%s: %v", p, err)
		}
		if seen = append(seen, s); enough(seen) {
			cancel()
		}
		return len(p), nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// GPUs that do not answer, or a machine without GPUs, do not count as a driver that hangs.
func TestWatchOfNone(t *testing.T) {
	two := func(seen []gpu.Sample) bool { return len(seen) >= 2 }
	m := machines()["dgxa100"]()
	for i := range m.devices {
		m.lose(i)
	}
	seen := samples(t, m, nil, func(seen []gpu.Sample) bool { return len(seen) >= 16 })
	for i, s := range seen {
		if s.UUID != "" || s.Index != i%8 || s.State == nil || !s.Lost {
			t.Fatalf("sample %d is %+v", i, s)
		}
	}
	m = machines()["dgxa100"]()
	m.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
	if seen := samples(t, m, nil, two); seen[0].State != nil || seen[0].UUID != "" {
		t.Errorf("got %+v", seen[0])
	}
}

// GPUs that are not to be watched are not opened: the driver resets none that is.
func TestWatchOfSome(t *testing.T) {
	m := machines()["dgxh100"]()
	m.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		t.Errorf("GPU %d was opened by its index", i)
		return nil, nvml.ERROR_GPU_IS_LOST
	}
	opened := map[string]bool{}
	m.DeviceGetHandleByPciBusIdFunc = func(address string) (nvml.Device, nvml.Return) {
		opened[address] = true
		for i, d := range m.devices {
			if fmt.Sprintf("0000:%02x:00.0", 0x30+i) == address {
				return d, nvml.SUCCESS
			}
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	seen := samples(t, m, []string{"--pci", "0000:31:00.0,0000:35:00.0,0000:99:00.0"}, func(seen []gpu.Sample) bool { return len(seen) >= 6 })
	if len(opened) != 3 || seen[0].UUID != uuidOf(1) || seen[0].Index != 1 || seen[1].UUID != uuidOf(5) || seen[2].UUID != "" || !seen[2].Lost {
		t.Errorf("opened were %v, told is %+v", opened, seen[:3])
	}
}

// The daemon has exited and reads no more.
func TestWatchEndsWithReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if err := run(t.Context(), machines()["dgxa100"](), []string{"watch", "--interval", "10ms"}, w); err == nil {
		t.Error("the watch ended well")
	}
}
