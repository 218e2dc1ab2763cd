package config

import "strings"

// retired are keys that had an effect in earlier versions, with what to do about
// them. A file that has them is read as if it had not.
var retired = map[string]string{
	"scheduling.max_overtakes": "has no effect any more and can be removed; scheduling.max_turn bounds how long a sheep stays with the model that it has loaded",
}

// retire takes retired keys out of the tree and returns a warning for each.
func retire(root *node) Problems {
	var warnings Problems
	for path, advice := range retired {
		n := root
		keys := strings.Split(path, ".")
		for _, key := range keys[:len(keys)-1] {
			n = n.get(key)
		}
		if n == nil {
			continue
		}
		last := keys[len(keys)-1]
		kept := make([]entry, 0, len(n.entries))
		for _, e := range n.entries {
			if e.key != last {
				kept = append(kept, e)
				continue
			}
			warnings = append(warnings, at(&node{line: e.line, column: e.column}, path, "%s", advice))
		}
		n.entries = kept
	}
	return warnings
}
