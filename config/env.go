package config

import (
	"regexp"
	"strconv"
	"strings"
)

// reference is $NAME or ${…}; what stands between braces is checked by name.
var (
	reference = regexp.MustCompile(`\$(?:([A-Z_][A-Z_0-9]*)|\{([^{}]*)\})`)
	name      = regexp.MustCompile(`^[A-Z_][A-Z_0-9]*$`)
)

// expand replaces the references to environment variables in text, once: what
// a variable holds is taken as it is. It reports whether there were any, and
// what is wrong with them.
func expand(text string, lookup func(string) (string, bool)) (expanded string, referred bool, wrong []string) {
	seen := map[string]bool{}
	complain := func(variable, problem string) {
		if !seen[variable] {
			seen[variable] = true
			wrong = append(wrong, problem+" (to mean the characters as they are, use single quotes)")
		}
	}
	expanded = reference.ReplaceAllStringFunc(text, func(ref string) string {
		referred = true
		variable := strings.TrimPrefix(ref, "$")
		if strings.HasPrefix(variable, "{") {
			variable = variable[1 : len(variable)-1]
		}
		if !name.MatchString(variable) {
			complain(variable, strconv.Quote(clip(ref))+" is no valid reference to an environment variable; "+
				"expected capital letters, digits and underscores, no digit first")
			return ""
		}
		value, ok := lookup(variable)
		if !ok {
			complain(variable, "environment variable "+variable+" is not set; set it where the daemon is started")
		}
		return value
	})
	return expanded, referred, wrong
}
