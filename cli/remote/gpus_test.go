package remote

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/client"
)

func TestPrintGPUs(t *testing.T) {
	p := func(s string) *string { return &s }
	load, heat, power := 93, 61, 312.4
	const gib = 1 << 30
	budget := int64(40 * gib)
	var b strings.Builder
	err := printGPUs(&b, client.GPUList{
		Trouble: p("shepherd-gpu crashed"),
		Gpus: []client.GPU{{
			Name: "Test A100", Uuid: "GPU-aaaa", Memory: 80 * gib, Used: 33 * gib, Utilization: &load, Temperature: &heat, Power: &power, Health: "ok",
			Sheep: []client.DeviceUser{
				{Name: "a", Shared: true, Model: client.Model{Name: p("m"), Version: p("v1")}, Job: p("job-1"), Used: 30 * gib, Budget: &budget},
				{Name: "b", Shared: true},
			},
			Foreign: []client.GPUProcess{{Pid: 4242, Name: "python3", Used: 3 * gib}, {Pid: 13, Name: "\x1b[2Jevil\n0 GPU"}},
		}, {
			Node: p("east"), Index: 1, Name: "Test A100", Uuid: "GPU-bbbb", Memory: 80 * gib, Health: "out", Detail: p("it fell off the bus"), RetestAt: p("2026-01-02T03:05:05.000006"),
			Sheep: []client.DeviceUser{{Name: "c", Instance: p("MIG-cccc"), Model: client.Model{Name: p("n"), Version: p("")}}},
		}},
		Others: []client.OtherDevice{{Name: "amd.com/gpu=0", Sheep: []client.DeviceUser{{Name: "d"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `It is not known how the GPUs fare: shepherd-gpu crashed
GPU                                            MEMORY               LOAD  POWER  TEMP   HEALTH
0 Test A100                                    33.0 GiB / 80.0 GiB  93 %  312 W  61 °C  ok
  sheep a: m:v1, job job-1                     30.0 GiB / 40.0 GiB
  sheep b: no model                            0.0 GiB
  not shepherd's: process 4242 (python3)       3.0 GiB
  not shepherd's: process 13 ( [2Jevil 0 GPU)  0.0 GiB
east 1 Test A100                               0.0 GiB / 80.0 GiB   -     -      -      out
  sheep c on MIG-cccc: n                       0.0 GiB
amd.com/gpu=0                                  -                    -     -      -      unknown
  sheep d: no model                            0.0 GiB
east GPU 1 (GPU-bbbb) is out: it fell off the bus; tested again at 2026-01-02 03:05:05 UTC
`
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
