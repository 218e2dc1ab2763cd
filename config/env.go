package config

import (
	"regexp"
	"strings"
)

// reference is $$, $NAME, ${NAME}, ${NAME-DEFAULT} or ${NAME:-DEFAULT}. Names are
// those of the original shepherd; other text is not changed, as
// in the original.
var reference = regexp.MustCompile(`\$(?:(\$)|([A-Z_][A-Z_0-9]*)|\{([A-Z_][A-Z_0-9]*)(?:(:?-)([^{}]*))?\})`)

// expand replaces the references to environment variables in text. References in the
// values are not replaced. It reports whether there were any references, and an error
// message for each variable that is not set.
func expand(text string, lookup func(string) (string, bool)) (expanded string, referred bool, wrong []string) {
	seen := map[string]bool{}
	var b strings.Builder
	end := 0
	for _, m := range reference.FindAllStringSubmatchIndex(text, -1) {
		group := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return text[m[2*i]:m[2*i+1]]
		}
		b.WriteString(text[end:m[0]])
		end = m[1]
		referred = true
		if group(1) != "" {
			b.WriteString("$")
			continue
		}
		variable := group(2) + group(3)
		value, set := lookup(variable)
		switch operator := group(4); {
		case operator == ":-" && value == "", operator == "-" && !set:
			value = group(5)
		case !set && !seen[variable]:
			seen[variable] = true
			wrong = append(wrong, "environment variable "+variable+" is not set; set it where the daemon is started, give a default as in ${"+variable+":-DEFAULT}, or write $$ to mean a $")
		}
		b.WriteString(value)
	}
	b.WriteString(text[end:])
	return b.String(), referred, wrong
}
