package gpu

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"
)

// inventory has GPUs 0 and 1, whose device nodes are the other way round, GPU 2
// with two MIG instances, and GPU 3, which is lost.
func inventory() *Inventory {
	return &Inventory{GPUs: []GPU{
		{Index: 0, Minor: 1, UUID: "GPU-aaaa", Name: "A100"},
		{Index: 1, Minor: 0, UUID: "GPU-bbbb", Name: "A100"},
		{Index: 2, Minor: 2, UUID: "GPU-cccc", Name: "A100", MIGMode: true, MIG: []Instance{
			{Index: 0, UUID: "MIG-0000", Profile: "3g.20gb"}, {Index: 1, UUID: "MIG-1111", Profile: "3g.20gb"}}},
		{Index: 3, Minor: 3, UUID: "GPU-dddd", Name: "A100", State: State{Lost: true}},
	}}
}

// ask reads "NAME: DEVICES", with "shared" at its end.
func ask(t *testing.T, lines ...string) []Request {
	t.Helper()
	var requests []Request
	for _, line := range lines {
		name, devices, _ := strings.Cut(line, ": ")
		r := Request{Sheep: name}
		devices, r.Shared = strings.CutSuffix(devices, " shared")
		if err := yaml.Unmarshal([]byte(devices), &r.Devices); err != nil {
			t.Fatal(err)
		}
		requests = append(requests, r)
	}
	return requests
}

// outcome is an allotment in words.
func outcome(grants map[string][]Grant, problems []*Problem) []string {
	var list []string
	for _, sheep := range slices.Sorted(maps.Keys(grants)) {
		line := sheep + ":"
		for _, g := range grants[sheep] {
			line += " " + g.Device.String()
			if g.GPU != nil {
				line += "@" + g.GPU.UUID
			}
			if g.Instance != nil {
				line += "/" + g.Instance.UUID
			}
		}
		list = append(list, line)
	}
	for _, p := range problems {
		text := p.Error()
		if p.Later {
			text += " (later)"
		} else if p.Absent {
			text += " (absent)"
		}
		list = append(list, text)
	}
	return list
}

func TestAllot(t *testing.T) {
	const vendor = "vendor.example/gpu"
	known := Machine{Inventory: inventory(), CDI: []string{vendor + "=a", vendor + "=b"}}
	spec := Machine{CDI: []string{"nvidia.com/gpu=10", "nvidia.com/gpu=2", "nvidia.com/gpu=GPU-aaaa", "nvidia.com/gpu=all"}}
	for name, c := range map[string]struct {
		machine  Machine
		requests []string
		want     []string
	}{
		"nothing": {known, []string{"a: []"}, nil},
		"the node's number is the minor": {known, []string{"a: [/dev/nvidia0]", "b: [nvidia.com/gpu=0]"},
			[]string{"a: /dev/nvidia0@GPU-bbbb", "b: nvidia.com/gpu=0@GPU-aaaa"}},
		"by UUID and MIG": {known, []string{"a: [nvidia.com/gpu=GPU-AAAA]", "b: ['nvidia.com/gpu=2:1', nvidia.com/gpu=MIG-0000]"},
			[]string{"a: nvidia.com/gpu=GPU-AAAA@GPU-aaaa", "b: nvidia.com/gpu=2:1@GPU-cccc/MIG-1111 nvidia.com/gpu=MIG-0000@GPU-cccc/MIG-0000"}},
		"one GPU by two names": {known, []string{"a: [/dev/nvidia0, nvidia.com/gpu=1]"}, []string{"a: /dev/nvidia0@GPU-bbbb"}},
		"all": {known, []string{"a: all"},
			[]string{"a: nvidia.com/gpu=GPU-aaaa@GPU-aaaa nvidia.com/gpu=GPU-bbbb@GPU-bbbb nvidia.com/gpu=MIG-0000@GPU-cccc/MIG-0000 nvidia.com/gpu=MIG-1111@GPU-cccc/MIG-1111 nvidia.com/gpu=GPU-dddd@GPU-dddd"}},
		"not there": {known, []string{"a: [/dev/nvidia7]", "b: ['nvidia.com/gpu=2:5']", "c: [" + vendor + "=c]"}, []string{
			"sheep a: devices: there is no /dev/nvidia7; the machine has 0 (A100, GPU-aaaa), 1 (A100, GPU-bbbb), 2 (A100 in MIG mode, with nvidia.com/gpu=2:0 (3g.20gb, MIG-0000), nvidia.com/gpu=2:1 (3g.20gb, MIG-1111)), 3 (A100, GPU-dddd) (absent)",
			"sheep b: devices: there is no nvidia.com/gpu=2:5; the machine has 0 (A100, GPU-aaaa), 1 (A100, GPU-bbbb), 2 (A100 in MIG mode, with nvidia.com/gpu=2:0 (3g.20gb, MIG-0000), nvidia.com/gpu=2:1 (3g.20gb, MIG-1111)), 3 (A100, GPU-dddd) (absent)",
			"sheep c: devices: there is no vendor.example/gpu=c; the machine's CDI specs have vendor.example/gpu=a, vendor.example/gpu=b (absent)"}},
		"no GPU at all": {Machine{Inventory: &Inventory{}}, []string{"a: [/dev/nvidia0]", "b: all"}, []string{
			"sheep a: devices: there is no /dev/nvidia0; the machine has no GPU (absent)",
			"sheep b: devices: nvidia.com/gpu=all asks for all GPUs, but the machine has no GPU (absent)"}},
		"MIG mode": {known, []string{"a: [nvidia.com/gpu=2]"},
			[]string{"sheep a: devices: nvidia.com/gpu=2 is in MIG mode and cannot be used as a whole; name its instances: nvidia.com/gpu=2:0 (3g.20gb, MIG-0000), nvidia.com/gpu=2:1 (3g.20gb, MIG-1111)"}},
		"twice, by other names": {known, []string{"a: [/dev/nvidia0]", "b: [nvidia.com/gpu=GPU-bbbb]"}, []string{"a: /dev/nvidia0@GPU-bbbb",
			"sheep b: devices: nvidia.com/gpu=GPU-bbbb is given to sheep a as well (as /dev/nvidia0); give it to one of them, or set `shared: true` for both"}},
		"twice, shared": {known, []string{"a: [/dev/nvidia0] shared", "b: [nvidia.com/gpu=1] shared"}, []string{"a: /dev/nvidia0@GPU-bbbb", "b: nvidia.com/gpu=1@GPU-bbbb"}},
		"twice, shared by one": {known, []string{"a: [/dev/nvidia0]", "b: [nvidia.com/gpu=1] shared"}, []string{"a: /dev/nvidia0@GPU-bbbb",
			"sheep b: devices: nvidia.com/gpu=1 is given to sheep a as well (as /dev/nvidia0); give it to one of them, or set `shared: true` for both"}},
		"an instance of what all has": {known, []string{"a: all", "b: ['nvidia.com/gpu=2:0']"}, []string{
			"a: nvidia.com/gpu=GPU-aaaa@GPU-aaaa nvidia.com/gpu=GPU-bbbb@GPU-bbbb nvidia.com/gpu=MIG-0000@GPU-cccc/MIG-0000 nvidia.com/gpu=MIG-1111@GPU-cccc/MIG-1111 nvidia.com/gpu=GPU-dddd@GPU-dddd",
			"sheep b: devices: nvidia.com/gpu=2:0 is given to sheep a as well (as nvidia.com/gpu=MIG-0000); give it to one of them, or set `shared: true` for both"}},
		"by count, of those that are left": {known, []string{"a: {count: 1}", "b: [nvidia.com/gpu=0]"}, []string{"a: nvidia.com/gpu=GPU-bbbb@GPU-bbbb", "b: nvidia.com/gpu=0@GPU-aaaa"}},
		"by count, too many": {known, []string{"a: {count: 2}", "b: [nvidia.com/gpu=0]"}, []string{"b: nvidia.com/gpu=0@GPU-aaaa",
			"sheep a: devices: asks for any 2 GPUs, but only 1 of 2 whole GPUs are not given to other sheep; GPUs that do not answer: 1 (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (later)"}},
		"by count, more than there are": {known, []string{"a: {count: 4}"}, []string{
			"sheep a: devices: asks for any 4 GPUs, but only 2 of 2 whole GPUs are not given to other sheep; GPUs that do not answer: 1 (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (absent)"}},
		"all, of which none answers": {Machine{Inventory: &Inventory{GPUs: []GPU{{Index: 0, State: State{Lost: true}}}}}, []string{"a: all"}, []string{
			"sheep a: devices: nvidia.com/gpu=all asks for all GPUs, but the machine has 0 (which does not answer) (later)"}},
		"by count, shared": {known, []string{"a: {count: 1} shared", "b: {count: 1} shared", "c: {count: 2} shared", "d: [nvidia.com/gpu=1] shared"},
			[]string{"a: nvidia.com/gpu=GPU-aaaa@GPU-aaaa", "b: nvidia.com/gpu=GPU-aaaa@GPU-aaaa", "c: nvidia.com/gpu=GPU-aaaa@GPU-aaaa nvidia.com/gpu=GPU-bbbb@GPU-bbbb", "d: nvidia.com/gpu=1@GPU-bbbb"}},
		"without a driver": {Machine{}, []string{"a: [/dev/nvidia0, nvidia.com/gpu=GPU-aaaa]", "b: [/dev/nvidia0]", "c: all", "d: {count: 1}"}, []string{
			"a: /dev/nvidia0 nvidia.com/gpu=GPU-aaaa",
			"sheep b: devices: /dev/nvidia0 is given to sheep a as well (as /dev/nvidia0); give it to one of them, or set `shared: true` for both",
			"sheep c: devices: nvidia.com/gpu=all is given to sheep a as well (as /dev/nvidia0); give it to one of them, or set `shared: true` for both",
			"sheep d: devices: any GPU cannot be chosen, because neither NVIDIA's driver nor a CDI spec lists any GPU (later)"}},
		"by the host's spec": {spec, []string{"a: [/dev/nvidia2]", "b: {count: 1}", "c: [nvidia.com/gpu=4]"}, []string{
			"a: /dev/nvidia2", "b: nvidia.com/gpu=10",
			"sheep c: devices: there is no nvidia.com/gpu=4; the machine's CDI specs have nvidia.com/gpu=10, nvidia.com/gpu=2, nvidia.com/gpu=GPU-aaaa, nvidia.com/gpu=all (absent)"}},
		"one is silent": {Machine{Inventory: &Inventory{GPUs: []GPU{{Index: 0, Minor: 0, UUID: "GPU-aaaa", Name: "A100"}, {Index: 1, Minor: 1, State: State{Lost: true}}, {Index: 2, Minor: 2, State: State{Lost: true}}}}},
			[]string{"a: [nvidia.com/gpu=1]", "b: [/dev/nvidia2]", "c: [nvidia.com/gpu=GPU-cccc]", "d: {count: 1}"}, []string{
				"d: nvidia.com/gpu=GPU-aaaa@GPU-aaaa",
				"sheep a: devices: nvidia.com/gpu=1 does not answer and cannot be identified; the machine has 0 (A100, GPU-aaaa), 1 (which does not answer), 2 (which does not answer) (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (later)",
				"sheep b: devices: /dev/nvidia2 does not answer and cannot be identified; the machine has 0 (A100, GPU-aaaa), 1 (which does not answer), 2 (which does not answer) (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (later)",
				"sheep c: devices: nvidia.com/gpu=GPU-cccc does not answer and cannot be identified; the machine has 0 (A100, GPU-aaaa), 1 (which does not answer), 2 (which does not answer) (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (later)"}},
		"a node's number that a silent GPU may have had": {Machine{Inventory: &Inventory{GPUs: []GPU{{Index: 0, State: State{Lost: true}}, {Index: 1, Minor: 0, UUID: "GPU-bbbb"}}}},
			[]string{"a: [/dev/nvidia0]"}, []string{"a: /dev/nvidia0@GPU-bbbb"}},
		"instances that cannot be identified": {Machine{Inventory: &Inventory{GPUs: []GPU{
			{Index: 0, MIGMode: true, MIG: []Instance{{Index: 0, UUID: "MIG-0000"}}, State: State{Lost: true}},
			{Index: 1, Name: "A100", UUID: "GPU-bbbb", MIGMode: true, MIG: []Instance{{Index: 0, UUID: "MIG-1111"}, {Index: 1, Profile: "1g.5gb"}}}}}},
			[]string{"a: [nvidia.com/gpu=all]", "b: [\"nvidia.com/gpu=1:1\"]"}, []string{
				"a: nvidia.com/gpu=MIG-1111@GPU-bbbb/MIG-1111",
				"sheep b: devices: nvidia.com/gpu=1:1 does not answer and cannot be identified; the machine has 0 (which does not answer), 1 (A100 in MIG mode, with nvidia.com/gpu=1:0 (, MIG-1111), nvidia.com/gpu=1:1 (1g.5gb, )) (look at dmesg; nvidia-smi --gpu-reset, or restart the machine) (later)"}},
		"only all": {Machine{CDI: []string{"nvidia.com/gpu=all"}}, []string{"a: [/dev/nvidia0]"}, []string{"a: /dev/nvidia0"}},
		"specs of no use": {Machine{CDI: []string{"nvidia.com/gpu=1"}, CDITrouble: "a.yaml and b.yaml both define nvidia.com/gpu=0"}, []string{"a: [/dev/nvidia0]"}, []string{
			"sheep a: devices: there is no /dev/nvidia0; the machine's CDI specs have nvidia.com/gpu=1; some cannot be used: a.yaml and b.yaml both define nvidia.com/gpu=0 (absent)"}},
		"another vendor": {known, []string{"a: [" + vendor + "=a]", "b: [" + vendor + "=a]", "c: [amd.com/gpu=0]"}, []string{
			"a: vendor.example/gpu=a", "c: amd.com/gpu=0",
			"sheep b: devices: vendor.example/gpu=a is given to sheep a as well (as vendor.example/gpu=a); give it to one of them, or set `shared: true` for both"}},
	} {
		t.Run(name, func(t *testing.T) {
			grants, problems := Allot(ask(t, c.requests...), c.machine)
			if got := outcome(grants, problems); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// By count, sheep keep what they had if everybody can have what they ask for then.
func TestAllotAgain(t *testing.T) {
	machine := func(lost ...int) Machine {
		inv := &Inventory{}
		for i, uuid := range []string{"GPU-a", "GPU-b", "GPU-c"} {
			inv.GPUs = append(inv.GPUs, GPU{Index: i, Minor: i, UUID: uuid, State: State{Lost: slices.Contains(lost, i)}})
		}
		return Machine{Inventory: inv}
	}
	for name, c := range map[string]struct {
		machine  Machine
		requests []string
		had      map[string][]string
		want     []string
	}{
		"a new sheep": {machine(), []string{"a: {count: 1}", "b: {count: 1}", "c: {count: 1}"}, map[string][]string{"b": {"GPU-a"}, "c": {"GPU-b"}},
			[]string{"a: nvidia.com/gpu=GPU-c@GPU-c", "b: nvidia.com/gpu=GPU-a@GPU-a", "c: nvidia.com/gpu=GPU-b@GPU-b"}},
		"one asks for more": {machine(), []string{"a: {count: 1}", "b: {count: 2}"}, map[string][]string{"a": {"GPU-a"}, "b": {"GPU-b"}},
			[]string{"a: nvidia.com/gpu=GPU-a@GPU-a", "b: nvidia.com/gpu=GPU-b@GPU-b nvidia.com/gpu=GPU-c@GPU-c"}},
		"a lost one, of which nobody else is moved": {machine(0), []string{"a: {count: 1}", "b: {count: 1}"}, map[string][]string{"a": {"GPU-a"}, "b": {"GPU-b"}},
			[]string{"a: nvidia.com/gpu=GPU-c@GPU-c", "b: nvidia.com/gpu=GPU-b@GPU-b"}},
		"one that is listed now": {machine(), []string{"a: {count: 1}", "b: [/dev/nvidia0]"}, map[string][]string{"a": {"GPU-a"}},
			[]string{"a: nvidia.com/gpu=GPU-b@GPU-b", "b: /dev/nvidia0@GPU-a"}},
		"in the way of others": {machine(2), []string{"a: {count: 1} shared", "b: {count: 1} shared", "c: {count: 1}"}, map[string][]string{"a": {"GPU-a"}, "b": {"GPU-b"}},
			[]string{"a: nvidia.com/gpu=GPU-b@GPU-b", "b: nvidia.com/gpu=GPU-b@GPU-b", "c: nvidia.com/gpu=GPU-a@GPU-a"}},
	} {
		t.Run(name, func(t *testing.T) {
			requests := ask(t, c.requests...)
			for i := range requests {
				requests[i].Had = c.had[requests[i].Sheep]
			}
			grants, problems := Allot(requests, c.machine)
			if got := outcome(grants, problems); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// Who has all of a machine's GPUs is told so, by whatever names.
func TestAllotWhole(t *testing.T) {
	two := Machine{Inventory: &Inventory{GPUs: []GPU{{Index: 0, UUID: "GPU-aaaa"}, {Index: 1, UUID: "GPU-bbbb"}}}}
	one := Machine{Inventory: &Inventory{GPUs: two.Inventory.GPUs[:1]}}
	for _, c := range []struct {
		machine Machine
		devices string
		want    bool
	}{
		{two, "all", true}, {two, "{count: 2}", true}, {two, "[/dev/nvidia0, nvidia.com/gpu=GPU-bbbb]", true}, {two, "[nvidia.com/gpu=0]", false},
		{one, "[nvidia.com/gpu=0]", true}, {one, "{count: 1}", true}, {Machine{}, "all", false},
	} {
		grants, problems := Allot(ask(t, "a: "+c.devices), c.machine)
		if problems != nil || slices.ContainsFunc(grants["a"], func(g Grant) bool { return g.Whole != c.want }) {
			t.Errorf("%s: got %+v, %v", c.devices, grants["a"], problems)
		}
	}
}

// Names alone tell some conflicts, without asking the machine.
func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"[/dev/nvidia0]", "[/dev/nvidia0]", true},
		{"[/dev/nvidia0]", "[/dev/nvidia1]", false},
		{"[nvidia.com/gpu=0]", "['nvidia.com/gpu=0:1']", true},
		{"['nvidia.com/gpu=0:0']", "['nvidia.com/gpu=0:1']", false},
		{"[nvidia.com/gpu=GPU-AA]", "[nvidia.com/gpu=GPU-aa]", true},
		{"all", "[/dev/nvidia1]", true},
		{"all", "[amd.com/gpu=1]", false},
		{"[amd.com/gpu=all]", "[amd.com/gpu=1]", true},
		{"all", "{count: 1}", false},
		{"[nvidia.com/gpu=GPU-aa]", "[nvidia.com/gpu=1]", false},
	} {
		for _, shared := range []string{"", " shared"} {
			requests := ask(t, "a: "+c.a+shared, "b: "+c.b+shared)
			for range 2 {
				got := Conflicts(requests)
				if (len(got) > 0) != (c.want && shared == "") {
					t.Errorf("%s and %s%s: got %v", c.a, c.b, shared, got)
				}
				if len(got) > 0 && got[0].Sheep != requests[1].Sheep {
					t.Errorf("%v names %s, not the later", got[0], got[0].Sheep)
				}
				slices.Reverse(requests)
			}
		}
	}
}

// Whatever is asked for, no GPU is given to two sheep that do not both share it,
// and who has no problem has all that it asked for.
func TestAllotGivesOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := &Inventory{}
		for i := range rapid.IntRange(0, 5).Draw(t, "GPUs") {
			g := GPU{Index: i, Minor: 5 - i, UUID: fmt.Sprintf("GPU-%d", i), MIGMode: rapid.Bool().Draw(t, "MIG")}
			for j := range rapid.IntRange(0, 2).Draw(t, "instances") {
				if g.MIGMode {
					g.MIG = append(g.MIG, Instance{Index: j, UUID: fmt.Sprintf("MIG-%d-%d", i, j)})
				}
			}
			inv.GPUs = append(inv.GPUs, g)
		}
		name := rapid.SampledFrom([]string{"0", "1", "2", "GPU-0", "GPU-2", "0:0", "1:1", "MIG-1-0", "all"})
		var requests []Request
		for i := range rapid.IntRange(1, 5).Draw(t, "sheep") {
			r := Request{Sheep: fmt.Sprint("sheep", i), Shared: rapid.Bool().Draw(t, "shared")}
			if rapid.Bool().Draw(t, "counted") {
				r.Devices.Count = rapid.IntRange(1, 3).Draw(t, "count")
				r.Had = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GPU-0", "GPU-1", "GPU-2", "GPU-3"}), 0, 3, rapid.ID).Draw(t, "had")
			} else {
				for _, n := range rapid.SliceOfNDistinct(name, 1, 3, rapid.ID).Draw(t, "names") {
					r.Devices.List = append(r.Devices.List, nvidia(n))
				}
			}
			requests = append(requests, r)
		}
		grants, problems := Allot(requests, Machine{Inventory: inv})
		troubled := map[string]bool{}
		for _, p := range problems {
			troubled[p.Sheep] = true
		}
		for i, r := range requests {
			if n := len(grants[r.Sheep]); !troubled[r.Sheep] && (n == 0 || r.Devices.Count > 0 && n != r.Devices.Count) {
				t.Fatalf("%s asked for %s and has %v", r.Sheep, r.Devices, grants[r.Sheep])
			}
			for _, other := range requests[:i] {
				for _, g := range grants[r.Sheep] {
					if !(r.Shared && other.Shared) && slices.ContainsFunc(grants[other.Sheep], g.overlaps) {
						t.Fatalf("%s and %s both have %s", r.Sheep, other.Sheep, g.Device)
					}
				}
			}
		}
	})
}
