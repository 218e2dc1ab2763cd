// Package bucketname knows the rules that S3 has for the names of buckets:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
package bucketname

import (
	"fmt"
	"slices"
	"strings"
)

// Problem describes what is wrong with a name, as a phrase that follows the name; "" for a
// valid name.
func Problem(name string) string {
	switch {
	case len(name) < 3 || len(name) > 63:
		return fmt.Sprintf("has %d characters; it must have 3 to 63", len(name))
	case strings.ContainsFunc(name, func(r rune) bool { return !alnum(r) && r != '.' && r != '-' }):
		return "may hold lower-case letters, digits, '.' and '-' only"
	case !alnum(rune(name[0])) || !alnum(rune(name[len(name)-1])):
		return "must begin and end with a lower-case letter or a digit"
	case strings.Contains(name, "..") || strings.Contains(name, ".-") || strings.Contains(name, "-."):
		return "must have a letter or digit on both sides of every '.'"
	}
	if likeIP(name) {
		return "must not look like an IP address"
	}
	return ""
}

// likeIP reports whether a name is four numbers, whatever their size: clients refuse
// 0.0.00.0 and 999.1.1.1, too.
func likeIP(name string) bool {
	parts := strings.Split(name, ".")
	return len(parts) == 4 && !slices.ContainsFunc(parts, func(part string) bool { return strings.Trim(part, "0123456789") != "" })
}

func alnum(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }

// Valid reports whether a bucket can have the name.
func Valid(name string) bool { return Problem(name) == "" }
