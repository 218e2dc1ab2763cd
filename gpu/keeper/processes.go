package keeper

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
)

// processes reads information about processes from a proc file system at root.
type processes struct{ root string }

// maxDepth is how many ancestors of a process are followed.
const maxDepth = 64

// belongs reports whether a process is the runner, descends from it, or is in the
// runner's control group, unless the daemon is in that group, too.
func (p processes) belongs(pid, runner int) bool {
	for n, at := 0, pid; at > 1 && n < maxDepth; n++ {
		if at == runner {
			return true
		}
		at = p.parent(at)
	}
	theirs, own := p.groups(runner), p.groups("self")
	for hierarchy, group := range p.groups(pid) {
		base := theirs[hierarchy]
		if base != "" && base != "/" && base != own[hierarchy] && !strings.HasPrefix(own[hierarchy], base+"/") &&
			(group == base || strings.HasPrefix(group, base+"/")) {
			return true
		}
	}
	return false
}

// parent returns a process's parent, 0 if it is not known.
func (p processes) parent(pid int) int {
	stat, err := os.ReadFile(filepath.Join(p.root, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	process, err := proc.ParseStat(stat)
	if err != nil {
		return 0
	}
	return process.Parent
}

// groups returns the control groups of a process, a pid or "self", by hierarchy.
func (p processes) groups(process any) map[string]string {
	name, ok := process.(string)
	if pid, number := process.(int); !ok && number {
		name = strconv.Itoa(pid)
	}
	text, err := os.ReadFile(filepath.Join(p.root, name, "cgroup"))
	if err != nil {
		return nil
	}
	groups := make(map[string]string)
	for _, m := range cgroup.ParseMemberships(string(text)) {
		groups[m.Hierarchy] = path.Clean(m.Path)
	}
	return groups
}

// name returns a process's name, "?" if it is not known.
func (p processes) name(pid int) string {
	name, err := os.ReadFile(filepath.Join(p.root, strconv.Itoa(pid), "comm"))
	if err != nil {
		return "?"
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(name)), "?")
}
