package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/gpu"
)

// driverCapabilities are those that NVIDIA's container toolkit knows.
var driverCapabilities = []string{"all", "compute", "compat32", "display", "graphics", "ngx", "utility", "video"}

// checkGPU checks the section gpu.
func checkGPU(r *report, g *GPU) {
	r.word("gpu.mode", g.Mode, []string{"auto", "cdi", "hook"})
	r.expect(len(g.CDIDirs) > 0 && !slices.ContainsFunc(g.CDIDirs, func(p string) bool { return !filepath.IsAbs(p) }),
		"gpu.cdi_dirs", "a list of absolute paths")
	r.expect(len(g.DriverCapabilities) > 0 && !slices.ContainsFunc(g.DriverCapabilities, func(c string) bool { return !slices.Contains(driverCapabilities, c) }),
		"gpu.driver_capabilities", "a list of all, compute, compat32, display, graphics, ngx, utility and video")
	r.expect(g.Interval >= 100*time.Millisecond, "gpu.interval", "a duration, 100ms or longer")
	r.expect(g.Retest >= time.Second, "gpu.retest", "a duration, 1s or longer")
	r.expect(g.Turn >= 0, "gpu.turn", "a duration, 0s or longer")
	r.expect(g.MemoryWait > 0, "gpu.memory_wait", "a duration longer than 0")
	for _, code := range slices.Sorted(maps.Keys(g.Xids)) {
		path := "gpu.xids." + code
		if _, err := strconv.ParseUint(code, 10, 16); err != nil {
			r.wrong(r.near(path), path, "not the code of an Xid; expected a number such as 31")
			continue
		}
		r.missing(path+".action", "what is to be done: retire, fail_job or ignore")
		r.word(path+".action", g.Xids[code].Action, []string{"retire", "fail_job", "ignore"})
	}
}

// devices reports GPUs that are requested by more sheep than may use them.
func (ch *checker) devices() {
	for _, p := range gpu.Conflicts(ch.Requests()) {
		i := slices.IndexFunc(ch.Sheep, func(s Sheep) bool { return s.Name == p.Sheep })
		path := ch.Sheep[i].path + ".devices"
		if n := ch.Sheep[i].section.get("devices"); !ch.problems.cover(n, path) {
			ch.wrong(n, path, "%s", p.Text)
		}
	}
}

// Requests are the GPUs that the sheep request, in the order of their names.
func (c *Config) Requests() []gpu.Request {
	var requests []gpu.Request
	for _, s := range c.Sheep {
		requests = append(requests, gpu.Request{Sheep: s.Name, Devices: s.Devices, Shared: s.Shared})
	}
	return requests
}

// DeviceWarnings name the devices of sheep that are ignored because they are not GPUs.
func (c *Config) DeviceWarnings() []string {
	var warnings []string
	for _, s := range c.Sheep {
		if len(s.Devices.Ignored) > 0 {
			warnings = append(warnings, fmt.Sprintf("sheep %s: devices that are no GPUs are ignored: %s", s.Name, strings.Join(s.Devices.Ignored, ", ")))
		}
	}
	return warnings
}
