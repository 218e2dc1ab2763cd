package doctor

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	containerd "github.com/containerd/containerd/v2/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/image"
)

const logOf = "look at its log (journalctl -u containerd)"

// Containerd examines the daemon that runs container sheep.
type Containerd struct {
	Address, Namespace string
	Snapshotters       []string // those that sheep use
}

// Name implements Check.
func (Containerd) Name() string { return "containerd" }

// Examine implements Check.
func (c Containerd) Examine(ctx context.Context) []Finding {
	client, err := image.Connect(ctx, c.Address, c.Namespace, nil)
	if err != nil {
		return []Finding{fromError(Failure, err, logOf)}
	}
	defer client.Close()
	version, err := client.Version(ctx)
	if err != nil {
		return []Finding{fromError(Failure, err, logOf)}
	}
	findings := []Finding{judgeVersion(version.Version, c.Address)}
	plugins, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return append(findings, failure(logOf, "containerd does not say what it can do: %v", err))
	}
	for _, name := range c.Snapshotters {
		findings = append(findings, judgeSnapshotter(name, plugins.Plugins))
	}
	return append(findings, examineDevices(ctx, client)...)
}

var versionNumber = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

// judgeVersion accepts the releases from 1.6 on.
func judgeVersion(version, address string) Finding {
	m := versionNumber.FindStringSubmatch(version)
	if m == nil {
		return warning("use a release from 1.6 on", "containerd at %s says it is version %q, which is not a release version", address, version)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 1 || major == 1 && minor < 6 {
		return failure("install a release from 1.6 on", "containerd at %s is version %s, which is too old", address, version)
	}
	return ok("%s at %s", strings.TrimPrefix(version, "v"), address)
}

func judgeSnapshotter(name string, plugins []*introspection.Plugin) Finding {
	var usable []string
	for _, p := range plugins {
		if p.InitErr == nil && p.ID != name {
			usable = append(usable, p.ID)
			continue
		}
		if p.ID != name {
			continue
		}
		if p.InitErr != nil {
			return failure("provide what it asks for, or choose another with containerd.snapshotter",
				"snapshotter %s does not work here: %s", name, p.InitErr.Message)
		}
		return ok("snapshotter %s", name)
	}
	slices.Sort(usable)
	return failure("set containerd.snapshotter to one of "+strings.Join(usable, ", "), "containerd has no snapshotter %s", name)
}

// nvidiaDevices are the files of GPUs.
var nvidiaDevices = regexp.MustCompile(`^/dev/nvidia(\d|-|ctl)`)

// examineDevices looks for containers that would lose their GPUs when systemd reloads its
// units: systemd then applies only its own device rules, and drops those that runc has
// added.
func examineDevices(ctx context.Context, client *containerd.Client) []Finding {
	containers, err := client.Containers(ctx)
	if err != nil {
		return []Finding{failure(logOf, "containerd does not list containers: %v", err)}
	}
	var findings []Finding
	with := 0
	for _, c := range containers {
		spec, err := c.Spec(ctx)
		if err != nil || spec.Linux == nil || !hasGPU(spec) {
			continue // it may have been removed meanwhile
		}
		with++
		if problem := deviceRisk(spec); problem != "" {
			findings = append(findings, failure("let the sheep load its model again (shepherdd sheep stop, then a job); do not run `systemctl daemon-reload` before that",
				"container %s would lose its GPUs at the next `systemctl daemon-reload`: %s", c.ID(), problem))
		}
	}
	if with > 0 && len(findings) == 0 {
		findings = append(findings, ok("the GPUs of %s outlive `systemctl daemon-reload`", plural(with, "container")))
	}
	return findings
}

func hasGPU(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return nvidiaDevices.MatchString(d.Path) })
}

// deviceRisk returns why a container with GPUs would lose them, or "" if it would not.
func deviceRisk(spec *specs.Spec) string {
	// runc treats SLICE:PREFIX:NAME as a unit of systemd, which then applies the device
	// rules.
	if strings.Count(spec.Linux.CgroupsPath, ":") == 2 {
		return "its cgroup is a unit of systemd"
	}
	if spec.Linux.Resources == nil {
		return ""
	}
	for _, d := range spec.Linux.Devices {
		if nvidiaDevices.MatchString(d.Path) && !allowed(spec.Linux.Resources.Devices, d) {
			return fmt.Sprintf("no device rule allows %s", d.Path)
		}
	}
	return ""
}

// allowed applies the last rule for the device, as the kernel does.
func allowed(rules []specs.LinuxDeviceCgroup, d specs.LinuxDevice) bool {
	answer := true
	for _, r := range rules {
		if (r.Type == "" || r.Type == "a" || r.Type == d.Type) && matches(r.Major, d.Major) && matches(r.Minor, d.Minor) {
			answer = r.Allow
		}
	}
	return answer
}

func matches(rule *int64, number int64) bool { return rule == nil || *rule == -1 || *rule == number }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
