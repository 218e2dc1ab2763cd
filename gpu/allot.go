package gpu

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Request is one sheep's request for devices.
type Request struct {
	Sheep   string
	Devices Devices
	// Shared allows other sheep with Shared to have the same GPUs.
	Shared bool
	// Had are the names of the GPUs that the sheep was granted by count before. It is
	// granted them again if possible, because its runner may be using them.
	Had []string
	// Fixed are its grants if they must not change.
	Fixed []Grant
}

// Grant is a GPU, or a MIG instance of one, that is granted to a sheep.
type Grant struct {
	// Device is the name in the request. A GPU requested by `all` or by count has its
	// UUID, if the driver answers.
	Device Device
	// GPU and Instance describe the device. Both are nil if the driver does not answer
	// and for other vendors' devices; Instance is nil for whole GPUs.
	GPU      *GPU
	Instance *Instance
	// Whole is true if the sheep has all NVIDIA GPUs of the machine.
	Whole bool
}

// Machine describes a machine's devices.
type Machine struct {
	// Inventory is nil if NVIDIA's driver does not answer.
	Inventory *Inventory
	// CDI are the names of the devices in the machine's CDI specs.
	CDI []string
	// CDITrouble says why some CDI specs cannot be used; empty if all can.
	CDITrouble string
}

// Problem says why a sheep cannot have the devices that it requests.
type Problem struct {
	Sheep string
	Text  string
	// Later is true if a later attempt may succeed.
	Later bool
	// Absent is true if the machine lacks a device, or has too few. A mistyped name looks like
	// that, and so does a GPU that has failed.
	Absent bool
}

func (p *Problem) Error() string { return "sheep " + p.Sheep + ": devices: " + p.Text }

// Conflicts finds GPUs that two sheep request which do not both share them, by comparing
// names only.
func Conflicts(requests []Request) []*Problem {
	var found []*Problem
	for i, r := range requests {
		for _, d := range r.Devices.List {
			if p := conflict(requests[:i], r, func(other Request) (string, bool) {
				for _, o := range other.Devices.List {
					if d.overlaps(o) {
						return o.String(), true
					}
				}
				return "", false
			}); p != nil {
				p.Text = d.String() + " " + p.Text
				found = append(found, p)
			}
		}
	}
	return found
}

// conflict finds the first of the other requests that has the device in question, as the
// function has reports, unless both requests share it.
func conflict(others []Request, r Request, has func(Request) (as string, _ bool)) *Problem {
	for _, other := range others {
		if other.Sheep == r.Sheep || r.Shared && other.Shared {
			continue
		}
		if as, ok := has(other); ok {
			text := fmt.Sprintf("is given to sheep %s as well (as %s); give it to one of them, or set `shared: true` for both", other.Sheep, as)
			return &Problem{Sheep: r.Sheep, Text: text}
		}
	}
	return nil
}

// part splits the name of an NVIDIA device into the GPU's name, which is empty for a MIG
// instance by UUID, and the instance's name, which is empty for a whole GPU.
func (d Device) part() (gpu, instance string) {
	if strings.HasPrefix(d.Name, "MIG-") {
		return "", strings.ToLower(d.Name)
	}
	gpu, instance, _ = strings.Cut(strings.ToLower(d.Name), ":")
	return gpu, instance
}

// overlaps reports whether two names certainly denote the same device or parts of it.
func (d Device) overlaps(o Device) bool {
	switch {
	case d.Kind != o.Kind:
		return false
	case d.All() || o.All():
		return true
	case d.Kind != NVIDIA:
		return d.Name == o.Name
	}
	gpu, instance := d.part()
	otherGPU, otherInstance := o.part()
	return gpu == otherGPU && (instance == otherInstance || instance == "" || otherInstance == "")
}

// Allot decides which devices each sheep gets, by its name. It returns a *Problem for each
// device that cannot be granted; the map may lack sheep with problems. The result depends
// on the arguments only. Without problems that it does not have otherwise, sheep have again
// what they Had.
func Allot(requests []Request, m Machine) (map[string][]Grant, []*Problem) {
	grants, problems := allot(requests, m)
	if len(problems) == 0 || !slices.ContainsFunc(requests, func(r Request) bool { return len(r.Had) > 0 }) {
		return grants, problems
	}
	anew := slices.Clone(requests)
	for i := range anew {
		anew[i].Had = nil
	}
	if other, fewer := allot(anew, m); len(fewer) < len(problems) {
		return other, fewer
	}
	return grants, problems
}

func allot(requests []Request, m Machine) (map[string][]Grant, []*Problem) {
	a := allotment{Machine: m, requests: requests, grants: make(map[string][]Grant)}
	for _, r := range requests {
		if len(r.Fixed) > 0 {
			a.grants[r.Sheep] = slices.Clone(r.Fixed)
		}
	}
	for _, r := range requests {
		if len(r.Fixed) == 0 {
			a.list(r)
		}
	}
	for _, r := range requests {
		if len(a.grants[r.Sheep]) == 0 {
			a.again(r)
		}
	}
	// Sheep that share can be placed on the same GPUs, so they come last.
	for _, shared := range []bool{false, true} {
		for _, r := range requests {
			if r.Devices.Count > 0 && r.Shared == shared && len(a.grants[r.Sheep]) == 0 {
				a.count(r)
			}
		}
	}
	a.markWhole()
	return a.grants, a.problems
}

// markWhole sets Whole in the grants of sheep that have all of the machine's GPUs.
func (a *allotment) markWhole() {
	if a.Inventory == nil {
		return
	}
	all := a.Inventory.all()
	for _, grants := range a.grants {
		has := func(g Grant) bool { return slices.ContainsFunc(grants, g.same) }
		if len(all) > 0 && !slices.ContainsFunc(all, func(g Grant) bool { return !has(g) }) {
			for i := range grants {
				grants[i].Whole = grants[i].Device.Kind == NVIDIA
			}
		}
	}
}

type allotment struct {
	Machine
	requests []Request
	grants   map[string][]Grant
	problems []*Problem
}

// list grants a sheep the devices that it lists.
func (a *allotment) list(r Request) {
	for _, d := range r.Devices.List {
		grants, problem := a.find(d)
		if problem != nil {
			problem.Sheep = r.Sheep
			a.problems = append(a.problems, problem)
			continue
		}
		for _, g := range grants {
			p := conflict(a.requests, r, func(other Request) (string, bool) {
				for _, o := range a.grants[other.Sheep] {
					if g.overlaps(o) {
						return o.Device.String(), true
					}
				}
				return "", false
			})
			if p != nil {
				p.Text = d.String() + " " + p.Text
				a.problems = append(a.problems, p)
				break
			}
			if !slices.ContainsFunc(a.grants[r.Sheep], g.same) {
				a.grants[r.Sheep] = append(a.grants[r.Sheep], g)
			}
		}
	}
}

func (g Grant) overlaps(o Grant) bool {
	if g.GPU == nil || o.GPU == nil {
		return g.Device.overlaps(o.Device)
	}
	return g.GPU.UUID == o.GPU.UUID && (g.Instance == nil || o.Instance == nil || g.Instance.UUID == o.Instance.UUID)
}

func (g Grant) same(o Grant) bool {
	if g.GPU == nil || o.GPU == nil {
		return g.Device == o.Device
	}
	return g.overlaps(o)
}

// find returns the devices that a name denotes, or what is wrong with the name.
func (a *allotment) find(d Device) ([]Grant, *Problem) {
	if d.Kind == NVIDIA && a.Inventory != nil {
		return a.Inventory.find(d)
	}
	known := a.described(d.Kind)
	if len(known) == 0 || slices.Contains(known, d.Name) {
		return []Grant{{Device: d}}, nil
	}
	if d.Kind == NVIDIA && len(known) == 1 && known[0] == Every {
		return []Grant{{Device: d}}, nil // hand-written specs and WSL's have only `all`; package cdi decides
	}
	text := fmt.Sprintf("there is no %s; the machine's CDI specs have %s", d, strings.Join(qualified(d.Kind, known), ", "))
	if a.CDITrouble != "" {
		text += "; some cannot be used: " + a.CDITrouble
	}
	return nil, &Problem{Text: text, Absent: true}
}

// described returns the names of the devices of a kind in the CDI specs.
func (a *allotment) described(kind string) []string {
	var names []string
	for _, s := range a.CDI {
		if k, name, ok := strings.Cut(s, "="); ok && k == kind {
			names = append(names, name)
		}
	}
	return names
}

func qualified(kind string, names []string) []string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = kind + "=" + n
	}
	return list
}

// find returns the devices that a name denotes among the driver's GPUs. A GPU that does
// not answer cannot be identified, so it is granted to no sheep; the Problem has Later
// set, so that other sheep can still start.
func (inv *Inventory) find(d Device) ([]Grant, *Problem) {
	if d.All() {
		grants := inv.all()
		if len(grants) == 0 {
			return nil, &Problem{Text: fmt.Sprintf("%s asks for all GPUs, but %s", d, inv.there()), Later: inv.broken() > 0, Absent: true}
		}
		return grants, nil
	}
	name, instance := d.part()
	silent := false
	for i := range inv.GPUs {
		g := &inv.GPUs[i]
		if g.UUID == "" {
			silent = true // the number of its device node is not known either
			continue
		}
		for j := range g.MIG {
			m := &g.MIG[j]
			if m.UUID != "" && (name == "" && strings.EqualFold(m.UUID, instance) || name == strconv.Itoa(g.Index) && instance == strconv.Itoa(m.Index)) {
				return []Grant{{Device: d, GPU: g, Instance: m}}, nil
			}
		}
		number := g.Index
		if d.Node {
			number = g.Minor
		}
		if instance != "" || name != strconv.Itoa(number) && !strings.EqualFold(name, g.UUID) {
			continue
		}
		if g.MIGMode {
			return nil, &Problem{Text: fmt.Sprintf("%s is in MIG mode and cannot be used as a whole; name its instances: %s", d, g.instances())}
		}
		return []Grant{{Device: d, GPU: g}}, nil
	}
	if silent && name != "" {
		return nil, &Problem{Text: fmt.Sprintf("%s does not answer and cannot be identified; %s (look at dmesg; nvidia-smi --gpu-reset, or restart the machine)", d, inv.there()), Later: true}
	}
	return nil, &Problem{Text: fmt.Sprintf("there is no %s; %s", d, inv.there()), Later: silent, Absent: true}
}

// all returns the GPUs that are not in MIG mode, and the instances of those that are,
// without those that have no UUID.
func (inv *Inventory) all() []Grant {
	var grants []Grant
	for i := range inv.GPUs {
		g := &inv.GPUs[i]
		if g.UUID == "" {
			continue
		}
		if !g.MIGMode {
			grants = append(grants, Grant{Device: Device{Kind: NVIDIA, Name: g.UUID}, GPU: g})
		}
		for j := range g.MIG {
			if g.MIG[j].UUID == "" {
				continue
			}
			grants = append(grants, Grant{Device: Device{Kind: NVIDIA, Name: g.MIG[j].UUID}, GPU: g, Instance: &g.MIG[j]})
		}
	}
	return grants
}

// broken returns how many GPUs do not answer.
func (inv *Inventory) broken() (n int) {
	for _, g := range inv.GPUs {
		if g.UUID == "" || g.Lost {
			n++
		}
	}
	return n
}

// there lists the machine's GPUs for a message.
func (inv *Inventory) there() string {
	var list []string
	for _, g := range inv.GPUs {
		text := fmt.Sprintf("%d (%s, %s)", g.Index, g.Name, g.UUID)
		if g.UUID == "" {
			text = fmt.Sprintf("%d (which does not answer)", g.Index)
		}
		if g.MIGMode && g.UUID != "" {
			text = fmt.Sprintf("%d (%s in MIG mode, with %s)", g.Index, g.Name, g.instances())
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return "the machine has no GPU"
	}
	return "the machine has " + strings.Join(list, ", ")
}

func (g *GPU) instances() string {
	var list []string
	for _, m := range g.MIG {
		list = append(list, fmt.Sprintf("%s=%d:%d (%s, %s)", NVIDIA, g.Index, m.Index, m.Profile, m.UUID))
	}
	return cmp.Or(strings.Join(list, ", "), "there is none yet, make some with nvidia-smi mig")
}

var plainIndex = regexp.MustCompile(`^` + index + `$`)

// whole returns the GPUs that can be granted by count, in order.
func (a *allotment) whole() []Grant {
	if a.Inventory != nil {
		return slices.DeleteFunc(a.Inventory.all(), func(g Grant) bool { return g.Instance != nil || g.GPU.Lost })
	}
	var grants []Grant
	for _, name := range a.described(NVIDIA) {
		if plainIndex.MatchString(name) {
			grants = append(grants, Grant{Device: Device{Kind: NVIDIA, Name: name}})
		}
	}
	slices.SortFunc(grants, func(x, y Grant) int {
		return cmp.Or(cmp.Compare(len(x.Device.Name), len(y.Device.Name)), cmp.Compare(x.Device.Name, y.Device.Name))
	})
	return grants
}

// again grants a sheep the GPUs that it Had, if these are as many as it requests and all
// can be granted.
func (a *allotment) again(r Request) {
	if r.Devices.Count == 0 || len(r.Had) != r.Devices.Count {
		return
	}
	free, _ := a.free(r)
	free = slices.DeleteFunc(free, func(g Grant) bool { return !slices.Contains(r.Had, g.Device.Name) })
	if len(free) == r.Devices.Count {
		a.grants[r.Sheep] = free
	}
}

// free returns the GPUs that the sheep may be granted by count, in order, and how many
// other sheep have each.
func (a *allotment) free(r Request) (free []Grant, holders map[Device]int) {
	holders = make(map[Device]int)
	for _, g := range a.whole() {
		taken := false
		for _, other := range a.requests {
			if other.Sheep != r.Sheep && slices.ContainsFunc(a.grants[other.Sheep], g.overlaps) {
				holders[g.Device]++
				taken = taken || !r.Shared || !other.Shared
			}
		}
		if !taken {
			free = append(free, g)
		}
	}
	return free, holders
}

// count grants a sheep the requested number of GPUs: of those that it Had, and then those
// that the fewest sheep have.
func (a *allotment) count(r Request) {
	whole := len(a.whole())
	if a.Inventory == nil && whole == 0 {
		text := fmt.Sprintf("%s cannot be chosen, because neither NVIDIA's driver nor a CDI spec lists any GPU", r.Devices)
		a.problems = append(a.problems, &Problem{Sheep: r.Sheep, Text: text, Later: true, Absent: true})
		return
	}
	free, holders := a.free(r)
	if len(free) < r.Devices.Count {
		broken := 0
		if a.Inventory != nil {
			broken = a.Inventory.broken()
		}
		text := fmt.Sprintf("asks for %s, but only %d of %d whole GPUs are not given to other sheep", r.Devices, len(free), whole)
		if broken > 0 {
			text += fmt.Sprintf("; GPUs that do not answer: %d (look at dmesg; nvidia-smi --gpu-reset, or restart the machine)", broken)
		}
		a.problems = append(a.problems, &Problem{Sheep: r.Sheep, Text: text, Later: len(free)+broken >= r.Devices.Count, Absent: true})
		return
	}
	slices.SortStableFunc(free, func(x, y Grant) int {
		if had := slices.Contains(r.Had, x.Device.Name); had != slices.Contains(r.Had, y.Device.Name) {
			if had {
				return -1
			}
			return 1
		}
		return cmp.Compare(holders[x.Device], holders[y.Device])
	})
	chosen := free[:r.Devices.Count]
	slices.SortStableFunc(chosen, func(x, y Grant) int {
		if x.GPU == nil {
			return 0
		}
		return cmp.Compare(x.GPU.Index, y.GPU.Index)
	})
	a.grants[r.Sheep] = slices.Clone(chosen)
}
