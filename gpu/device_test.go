package gpu

import (
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func nvidia(name string) Device { return Device{Kind: NVIDIA, Name: name} }
func node(n string) Device      { return Device{Kind: NVIDIA, Name: n, Node: true} }

func TestDevices(t *testing.T) {
	for text, want := range map[string]Devices{
		`[]`:                                {},
		`[/dev/nvidia0]`:                    {List: []Device{node("0")}},
		`[/dev/nvidia12, nvidia.com/gpu=0]`: {List: []Device{node("12"), nvidia("0")}},
		`[/dev/nvidiactl, /dev/nvidia3, /dev/nvidia-uvm, /dev/nvidia-uvm-tools, /dev/nvidia-modeset, /dev/dri/card0, /dev/dri/renderD128]`: {List: []Device{node("3")}},
		`["nvidia.com/gpu=0:1", nvidia.com/gpu=GPU-8932f937-d72c-4106-c12f-20bd9faed9f6]`:                                                  {List: []Device{nvidia("0:1"), nvidia("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")}},
		`[nvidia.com/gpu=MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f, nvidia.com/gpu=MIG-GPU-aa/1/0]`: {
			List: []Device{nvidia("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"), nvidia("MIG-GPU-aa/1/0")}},
		`[amd.com/gpu=0, vendor.example/accelerator=card-1.x]`: {List: []Device{{Kind: AMD, Name: "0"}, {Kind: "vendor.example/accelerator", Name: "card-1.x"}}},
		`[/dev/nvidia0, /dev/nvidia0, nvidia.com/gpu=0]`:       {List: []Device{node("0"), nvidia("0")}},
		`all`:                  {List: []Device{nvidia("all")}},
		`[all]`:                {List: []Device{nvidia("all")}},
		`[nvidia.com/gpu=all]`: {List: []Device{nvidia("all")}},
		`{count: 2}`:           {Count: 2},
		`{count: "2"}`:         {Count: 2},
		`{count: all}`:         {List: []Device{nvidia("all")}},
		`[0, "1"]`:             {List: []Device{nvidia("0"), nvidia("1")}},
		`["/dev/nvidia0:/dev/nvidia0", "/dev/nvidia1:/dev/nvidia1:rwm", /dev/dri, /dev/sda, "/dev/fuse:/dev/fuse"]`: {
			List: []Device{node("0"), node("1")}, Ignored: []string{"/dev/dri", "/dev/sda", "/dev/fuse:/dev/fuse"}},
	} {
		var got Devices
		if err := yaml.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
}

func TestDevicesMalformed(t *testing.T) {
	for text, says := range map[string]string{
		`[/dev/nvidia]`:            `"/dev/nvidia" is not a device`,
		`[/dev/nvidia00]`:          `is not a device`,
		`[/dev/nvidia-1]`:          `is not a device`,
		`[/dev/nvidia1000]`:        `is not a device`,
		`[gpu0]`:                   `"gpu0" is not a device`,
		`["1000"]`:                 `"1000" is not a device`,
		`[nvidia.com/gpu=]`:        `expected nvidia.com/gpu= and an index`,
		`[nvidia.com/gpu=gpu0]`:    `NVIDIA GPU`,
		`["nvidia.com/gpu=0:"]`:    `NVIDIA GPU`,
		`["nvidia.com/gpu=0:1:2"]`: `NVIDIA GPU`,
		`[nvidia.com/gpu=GPU-]`:    `NVIDIA GPU`,
		`[nvidia.com/gpu=GPU-xyz]`: `NVIDIA GPU`,
		`[nvidia.com/gpu=0=1]`:     `NVIDIA GPU`,
		`[amd.com/gpu]`:            `is not a device`,
		`[amd.com=0]`:              `is not a device`,
		`["amd.com/gpu=-"]`:        `is not a device`,
		`[/dev/nvidia0:/dev/x]`:    `another name in the container; write /dev/nvidia0`,
		`{count: 0}`:               `1 or more`,
		`{count: 100000}`:          `1 or more`,
		`some`:                     `expected a list of devices, all, or {count: N}`,
		`3`:                        `expected a list of devices, all, or {count: N}`,
	} {
		var got Devices
		if err := yaml.Unmarshal([]byte(text), &got); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	if d, err := ParseDevice("/dev/nvidiactl"); err == nil {
		t.Errorf("got %v", d)
	}
}

func TestWords(t *testing.T) {
	for want, d := range map[string]Devices{
		"no GPU":                           {},
		"any GPU":                          {Count: 1},
		"any 3 GPUs":                       {Count: 3},
		"/dev/nvidia0, nvidia.com/gpu=0:1": {List: []Device{node("0"), nvidia("0:1")}},
	} {
		if got := d.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What is read means the same when it is written and read again, and never ends
// in a panic.
func FuzzParseDevice(f *testing.F) {
	for _, s := range []string{"/dev/nvidia0", "nvidia.com/gpu=0:1", "nvidia.com/gpu=MIG-GPU-aa/1/0", "amd.com/gpu=all", "a/b=c", "", "=", "/dev/nvidia-uvm", "nvidia.com/gpu=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDevice(s)
		if err != nil {
			return
		}
		if again, err := ParseDevice(d.String()); err != nil || again != d {
			t.Errorf("%q is %q, which is %q, %v", s, d, again, err)
		}
		if strings.ContainsAny(d.Name, "\x00\n, ") || d.Name == "" || d.Kind == "" {
			t.Errorf("%q was taken: %+v", s, d)
		}
		if !d.overlaps(d) || !d.overlaps(Device{Kind: d.Kind, Name: Every}) {
			t.Errorf("%v does not overlap itself", d)
		}
	})
}
