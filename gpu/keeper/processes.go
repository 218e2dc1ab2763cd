package keeper

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// processes is what the kernel tells of processes below a folder as /proc is.
type processes struct{ root string }

// maxDepth bounds how many parents of a process are looked at.
const maxDepth = 64

// belongs says whether a process is the runner, descends from it, or is in a
// control group that only the runner and its descendants are in.
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

// parent is a process's parent, 0 where it is not known. It follows the name in
// parentheses, which may hold anything, and the state.
func (p processes) parent(pid int) int {
	stat, err := os.ReadFile(filepath.Join(p.root, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(string(fields[1]))
	return parent
}

// groups are the control groups of a process, by hierarchy.
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
	for line := range strings.Lines(string(text)) {
		// hierarchy-ID:controller-list:cgroup-path
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) == 3 && strings.HasPrefix(parts[2], "/") {
			groups[parts[0]] = path.Clean(parts[2])
		}
	}
	return groups
}

// name is a process's, "?" where it is not known.
func (p processes) name(pid int) string {
	name, err := os.ReadFile(filepath.Join(p.root, strconv.Itoa(pid), "comm"))
	if err != nil {
		return "?"
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(name)), "?")
}
