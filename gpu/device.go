package gpu

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/parser"
)

// The kinds of GPUs that shepherd supports beyond CDI.
const (
	NVIDIA = "nvidia.com/gpu"
	AMD    = "amd.com/gpu"
)

// Every is the name of all devices of a kind.
const Every = "all"

// Device is the name of a GPU or a part of one: a CDI name, VENDOR/CLASS=NAME, or
// /dev/nvidiaN.
type Device struct {
	Kind string // VENDOR/CLASS
	// Name is "all" or, for NVIDIA, an index ("0"), a UUID ("GPU-…"), or a MIG
	// instance by the indexes of its GPU and itself ("0:1") or by UUID ("MIG-…").
	// Other vendors have their own names.
	Name string
	// Node is true if it was named as /dev/nvidiaN; Name is N.
	Node bool
}

var (
	deviceNode = regexp.MustCompile(`^/dev/nvidia(0|[1-9][0-9]{0,2})$`)
	gpuIndex   = regexp.MustCompile(`^` + index + `$`)
	// auxiliary matches device nodes that every GPU needs. Docker configurations list
	// them; a sheep with a GPU always gets them.
	auxiliary  = regexp.MustCompile(`^/dev/(nvidiactl|nvidia-(uvm|uvm-tools|modeset)|dri/(card|renderD)[0-9]+)$`)
	nvidiaName = regexp.MustCompile(`^(all|` + index + `(:` + index + `)?|GPU-[0-9a-fA-F]+(-[0-9a-fA-F]+)*|MIG-[0-9a-zA-Z]+([/-][0-9a-zA-Z]+)*)$`)
)

const index = `(0|[1-9][0-9]{0,2})`

// errAuxiliary is parseDevice's error for a device node that every GPU needs.
var errAuxiliary = errors.New("not a GPU, but a device node that every GPU needs")

// errNoGPU is parseDevice's error for another device node that is not a GPU. The original
// shepherd ignored these.
var errNoGPU = errors.New("a device that is not a GPU")

// ParseDevice parses one device. See Devices for the forms that name several.
func ParseDevice(s string) (Device, error) {
	d, err := parseDevice(s)
	if errors.Is(err, errAuxiliary) || errors.Is(err, errNoGPU) {
		return Device{}, fmt.Errorf("%q is not a GPU; %s", s, forms)
	}
	return d, err
}

const forms = "expected /dev/nvidiaN or a CDI name such as nvidia.com/gpu=0, nvidia.com/gpu=GPU-UUID, nvidia.com/gpu=0:1 for a MIG instance, or amd.com/gpu=0"

func parseDevice(s string) (Device, error) {
	// Docker's HOST:CONTAINER[:rwm], where both are the same.
	if host, inside, ok := strings.Cut(s, ":"); ok && strings.HasPrefix(host, "/dev/") {
		if inside, _, _ = strings.Cut(inside, ":"); inside != host && strings.HasPrefix(inside, "/") {
			return Device{}, fmt.Errorf("%q gives a device another name in the container; write %s", s, host)
		}
		s = host
	}
	if gpuIndex.MatchString(s) { // an index, as in NVIDIA_VISIBLE_DEVICES
		return Device{Kind: NVIDIA, Name: s}, nil
	}
	if m := deviceNode.FindStringSubmatch(s); m != nil {
		return Device{Kind: NVIDIA, Name: m[1], Node: true}, nil
	}
	if auxiliary.MatchString(s) {
		return Device{}, errAuxiliary
	}
	if strings.HasPrefix(s, "/dev/") && !strings.HasPrefix(s, "/dev/nvidia") {
		return Device{}, errNoGPU
	}
	kind, name, qualified := strings.Cut(s, "=")
	if qualified && kind == NVIDIA {
		// The UUIDs of MIG instances of old drivers contain slashes, which CDI names
		// may not.
		if !nvidiaName.MatchString(name) {
			return Device{}, fmt.Errorf("%q is not an NVIDIA GPU; expected nvidia.com/gpu= and an index (0), a UUID (GPU-…), a MIG instance (0:1 or MIG-…) or all", s)
		}
		return Device{Kind: kind, Name: name}, nil
	}
	if _, _, _, err := parser.ParseQualifiedName(s); err != nil {
		return Device{}, fmt.Errorf("%q is not a device; %s", s, forms)
	}
	return Device{Kind: kind, Name: name}, nil
}

// String returns the name in the form in which it was parsed.
func (d Device) String() string {
	if d.Node {
		return "/dev/nvidia" + d.Name
	}
	return d.Kind + "=" + d.Name
}

// All reports whether it denotes all devices of its kind.
func (d Device) All() bool { return d.Name == Every }

// Devices are the devices that a sheep's configuration requests: none, all of the
// machine's GPUs, a number of them, or a list.
//
// In YAML it is a list of devices, the word all (instead of the list or in it),
// {count: N} or {count: all}. `all` and counts refer to NVIDIA's GPUs; all devices of
// another vendor are VENDOR/CLASS=all.
type Devices struct {
	Count   int      // number of NVIDIA GPUs, chosen by shepherd
	List    []Device // in the order given, each once
	Ignored []string // device nodes in the list that are not GPUs
}

// Empty reports whether no GPU is requested.
func (d Devices) Empty() bool { return d.Count == 0 && len(d.List) == 0 }

// Asks reports whether devices of a kind are requested.
func (d Devices) Asks(kind string) bool {
	for _, x := range d.List {
		if x.Kind == kind {
			return true
		}
	}
	return d.Count > 0 && kind == NVIDIA
}

// String describes the request for people.
func (d Devices) String() string {
	switch {
	case d.Count == 1:
		return "any GPU"
	case d.Count > 1:
		return fmt.Sprintf("any %d GPUs", d.Count)
	case d.Empty():
		return "no GPU"
	}
	names := make([]string, len(d.List))
	for i, x := range d.List {
		names[i] = x.String()
	}
	return strings.Join(names, ", ")
}

// maxCount is the largest Count.
const maxCount = 1000

// UnmarshalYAML parses any of the forms.
func (d *Devices) UnmarshalYAML(unmarshal func(any) error) error {
	var form any
	if err := unmarshal(&form); err != nil {
		return err
	}
	switch form := form.(type) {
	case []any:
		var list []item
		if err := unmarshal(&list); err != nil {
			return err
		}
		*d = Devices{}
		for _, i := range list {
			switch {
			case i.ignored != "":
				d.Ignored = append(d.Ignored, i.ignored)
			case i.Device != (Device{}) && !d.lists(i.Device):
				d.List = append(d.List, i.Device)
			}
		}
		return nil
	case string:
		if form == Every {
			*d = Devices{List: []Device{{Kind: NVIDIA, Name: Every}}}
			return nil
		}
	case map[string]any:
		if len(form) == 1 && form["count"] == Every {
			*d = Devices{List: []Device{{Kind: NVIDIA, Name: Every}}}
			return nil
		}
		var counted struct {
			Count int `yaml:"count"`
		}
		if err := unmarshal(&counted); err != nil {
			return err
		}
		if counted.Count < 1 || counted.Count > maxCount {
			return fmt.Errorf("count: expected a number of GPUs, 1 or more, found %d", counted.Count)
		}
		*d = Devices{Count: counted.Count}
		return nil
	}
	return errors.New("expected a list of devices, all, or {count: N}")
}

func (d *Devices) lists(x Device) bool {
	for _, have := range d.List {
		if have == x {
			return true
		}
	}
	return false
}

// item is an entry of a list: a device, or an ignored device node. It is zero for an
// auxiliary device node.
type item struct {
	Device
	ignored string
}

// UnmarshalText parses an entry.
func (i *item) UnmarshalText(text []byte) error {
	if string(text) == Every {
		*i = item{Device: Device{Kind: NVIDIA, Name: Every}}
		return nil
	}
	d, err := parseDevice(string(text))
	switch {
	case errors.Is(err, errNoGPU):
		*i = item{ignored: string(text)}
		return nil
	case err != nil && !errors.Is(err, errAuxiliary):
		return err
	}
	*i = item{Device: d}
	return nil
}
