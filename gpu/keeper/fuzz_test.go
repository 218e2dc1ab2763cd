package keeper

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/iterait/shepherd/gpu"
)

// FuzzSource gives the keeper whatever is an inventory and whatever samples follow it,
// one a line, as they come from shepherd-gpu: sheep that ask for GPUs in every way have
// what there is or wait, and what is told of the GPUs can be sent.
func FuzzSource(f *testing.F) {
	const (
		two = `{"driver":"550.54.15","cuda":"12.4","gpus":[{"index":0,"uuid":"GPU-a","name":"A100","pci":"0000:3b:00.0","memory":85899345920,"used":1,"power":60.5},` +
			`{"index":1,"minor":1,"uuid":"GPU-b","name":"A100","memory":85899345920,"mig_mode":true,"mig":[{"index":0,"uuid":"MIG-c","profile":"1g.10gb","memory":1}]}]}`
		lost = `{"gpus":[{"index":0,"uuid":"GPU-a"},{"index":1,"lost":true}]}`
	)
	f.Add(two, `{"uuid":"GPU-a","state":{"used":5,"utilization":100,"processes":[{"pid":4194305,"used":5,"mig":"MIG-c"}],"uncorrectable":1}}`+"\n"+
		`{"uuid":"GPU-a","state":{"uncorrectable":2}}`+"\n"+`{"uuid":"GPU-b","xid":{"code":79,"mig":"MIG-c"}}`, "0", lost)
	f.Add(lost, `{"index":1,"state":{"lost":true}}`+"\n"+`{}`, "1:0", two)
	f.Add(`{"gpus":[{"index":0,"mig_mode":true,"mig":[{"index":0,"uuid":"MIG-c"}]}]}`, "", "MIG-c", lost)
	f.Add(`{"gpus":[{"index":0,"uuid":"GPU-a","memory":18446744073709551615,"used":18446744073709551615}]}`, "", "0", lost)
	f.Add(`{"gpus":[{"uuid":"GPU-a"},{"uuid":"GPU-a"}]}`, `{"uuid":"GPU-a","state":{"reset_required":true,"row_remap_failed":true}}`, "GPU-a", `{"gpus":null}`)
	f.Fuzz(func(t *testing.T, inventory, samples, name, later string) {
		var first, second gpu.Inventory
		if json.Unmarshal([]byte(inventory), &first) != nil || json.Unmarshal([]byte(later), &second) != nil {
			return
		}
		k := New(Config{Proc: t.TempDir()})
		k.change(func() { k.applyInventory(&first) })
		requests := []gpu.Request{
			{Sheep: "all", Devices: gpu.Devices{List: []gpu.Device{{Kind: gpu.NVIDIA, Name: gpu.Every}}}, Shared: true},
			{Sheep: "count", Devices: gpu.Devices{Count: 1}, Shared: true},
		}
		if d, err := gpu.ParseDevice(gpu.NVIDIA + "=" + name); err == nil {
			requests = append(requests, gpu.Request{Sheep: "name", Devices: gpu.Devices{List: []gpu.Device{d}}, Shared: true})
		}
		grants, _ := gpu.Allot(requests, gpu.Machine{Inventory: &first})
		for sheep, devices := range grants {
			k.Lend(Share{Sheep: sheep, Devices: devices, Shared: true, Memory: 1})
		}
		for line := range strings.Lines(samples) {
			var s gpu.Sample
			if json.Unmarshal([]byte(line), &s) != nil {
				break
			}
			k.observe(s)
		}
		k.change(func() { k.applyInventory(&second) })
		if _, err := json.Marshal(k.Known()); err != nil {
			t.Errorf("what is known of the GPUs cannot be sent: %v", err)
		}
		k.Close() // not deferred: a panic leaves it locked
	})
}
