package doctor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/iterait/shepherd/gpu"
)

// helper returns a gpu.Helper whose program is the script.
func helper(t *testing.T, script string) *gpu.Helper {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shepherd-gpu")
	write(t, path, "#!/bin/sh\n"+script, 0o755)
	return gpu.NewHelper(gpu.HelperConfig{Program: path})
}

// telling returns a helper that reports the GPUs.
func telling(t *testing.T, gpus ...gpu.GPU) *gpu.Helper {
	t.Helper()
	text, err := json.Marshal(gpu.Inventory{Driver: "550.54.15", CUDA: "12.4", GPUs: gpus})
	if err != nil {
		t.Fatal(err)
	}
	return helper(t, "cat <<'END'\n"+string(text)+"\nEND\n")
}

func asking(t *testing.T, devices ...string) []gpu.Request {
	t.Helper()
	r := gpu.Request{Sheep: "gpu_sheep"}
	for _, name := range devices {
		d, err := gpu.ParseDevice(name)
		if err != nil {
			t.Fatal(err)
		}
		r.Devices.List = append(r.Devices.List, d)
	}
	return []gpu.Request{r}
}

var a100 = gpu.GPU{Index: 0, UUID: "GPU-11111111-2222-3333-4444-555555555555", Name: "NVIDIA A100", Memory: 40 << 30}

func TestDriver(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH"))
	check := func(h *gpu.Helper, requests []gpu.Request) []Finding {
		return GPUs{Requests: requests, Mode: "auto", CDIDirs: []string{t.TempDir()}, Inventory: h.Inventory}.Examine(t.Context())
	}
	none := helper(t, fmt.Sprintf("echo no driver is loaded >&2; exit %d", gpu.ExitNoDriver))
	healthy(t, check(none, nil))
	expect(t, check(none, asking(t, "/dev/nvidia0")), Failure, "no NVIDIA driver: no driver is loaded", "modprobe nvidia")
	expect(t, check(helper(t, fmt.Sprintf("echo GPU is lost >&2; exit %d", gpu.ExitDriver)), nil), Failure, "GPU is lost", "dmesg")
	expect(t, check(helper(t, "kill -SEGV $$"), nil), Failure, "crashed", "dmesg")
	missing := gpu.NewHelper(gpu.HelperConfig{Program: filepath.Join(t.TempDir(), "nothing")})
	healthy(t, check(missing, nil))
	expect(t, check(missing, asking(t, "nvidia.com/gpu=0")), Failure, "cannot be queried", "make build")

	findings := check(telling(t, a100), asking(t, "/dev/nvidia0"))
	healthy(t, findings)
	expect(t, findings, OK, "driver 550.54.15, CUDA up to 12.4, 1 GPU", "")
	expect(t, findings, OK, "GPU 0, NVIDIA A100 (GPU-11111111-2222-3333-4444-555555555555), 40GiB", "")
	expect(t, check(telling(t, a100), asking(t, "/dev/nvidia7")), Failure, "sheep gpu_sheep", "correct the sheep's devices")

	lost, reset, worn, tired := a100, a100, a100, a100
	errors := uint64(3)
	lost.Lost, reset.ResetRequired, worn.RowRemapFailed, tired.Uncorrectable = true, true, true, &errors
	expect(t, check(telling(t, lost), nil), Failure, "fallen off the bus", "restart")
	expect(t, check(telling(t, reset), nil), Failure, "needs a reset", "--gpu-reset")
	expect(t, check(telling(t, worn), nil), Failure, "defective memory", "replaced")
	expect(t, check(telling(t, tired), nil), Warning, "3 uncorrectable", "reset")
}

// TestSpecs reads CDI specs that are valid, out of date, and invalid.
func TestSpecs(t *testing.T) {
	dir, machine := t.TempDir(), t.TempDir()
	library := filepath.Join(machine, "libcuda.so.1")
	write(t, library, "", 0o644)
	write(t, filepath.Join(dir, "sheep.yaml"), fmt.Sprintf(`
cdiVersion: 0.6.0
kind: example.com/sheepdog
devices:
- name: rex
  containerEdits:
    deviceNodes: [{path: /dev/null}]
containerEdits:
  mounts: [{hostPath: %s, containerPath: /usr/lib/libcuda.so.1}]
`, library), 0o644)
	check := GPUs{Requests: asking(t, "example.com/sheepdog=rex"), Containers: true, Mode: "auto", CDIDirs: []string{dir, filepath.Join(dir, "none")},
		Inventory: telling(t).Inventory}
	findings := check.Examine(t.Context())
	healthy(t, findings)
	expect(t, findings, OK, "example.com/sheepdog=rex", "")

	if err := os.Remove(library); err != nil {
		t.Fatal(err)
	}
	expect(t, check.Examine(t.Context()), Failure, library+", which is not there", "nvidia-ctk cdi generate")

	write(t, filepath.Join(dir, "broken.yaml"), "kind: [", 0o644)
	expect(t, check.Examine(t.Context()), Failure, filepath.Join(dir, "broken.yaml"), "write it again")

	write(t, filepath.Join(dir, "broken.yaml"), "cdiVersion: 0.5.0\nkind: a.b/c\ndevices: [{name: x, containerEdits: {deviceNodes: [null]}}]\n", 0o644)
	expect(t, check.Examine(t.Context()), Failure, "broken.yaml: an entry of a list in it is empty, and no spec counts beside it", "write it again")
}

// TestHook looks for the hook if CDI cannot be used.
func TestHook(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	check := GPUs{Requests: asking(t, "/dev/nvidia0"), Containers: true, Mode: "hook", CDIDirs: []string{t.TempDir()}, Inventory: telling(t, a100).Inventory}
	expect(t, check.Examine(t.Context()), Failure, "nvidia-container-runtime-hook", "nvidia-container-toolkit")
	check.Containers = false // a bare sheep needs none
	healthy(t, check.Examine(t.Context()))
	check.Containers = true
	write(t, filepath.Join(bin, "nvidia-container-runtime-hook"), "", 0o755)
	healthy(t, check.Examine(t.Context()))
}

// TestUnit reads settings of the service that take GPUs away at a daemon-reload.
func TestUnit(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	check := GPUs{Requests: asking(t, "/dev/nvidia0"), Mode: "auto", CDIDirs: []string{t.TempDir()}, Inventory: telling(t, a100).Inventory}
	systemctl := func(answer string) {
		write(t, filepath.Join(bin, "systemctl"), "#!/bin/sh\nprintf '"+answer+"'\n", 0o755)
	}
	systemctl(`DevicePolicy=auto\nPrivateDevices=no\n`)
	healthy(t, check.Examine(t.Context()))
	for _, setting := range []string{"DevicePolicy=closed", "PrivateDevices=yes"} {
		systemctl(setting + `\n`)
		expect(t, check.Examine(t.Context()), Failure, setting, "systemctl edit shepherdd")
	}
}
