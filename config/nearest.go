package config

import (
	"fmt"
	"strings"
)

// suggest returns which of the known words was probably meant, or else lists
// them all.
func suggest(word string, known []string) string {
	if len(known) == 0 {
		return "none is expected here"
	}
	all := "expected one of " + strings.Join(known, ", ")
	if len(known) == 1 {
		all = "expected " + known[0]
	}
	best := nearest(word, known)
	if best == "" {
		return all
	}
	return fmt.Sprintf("did you mean %q? %s%s", best, strings.ToUpper(all[:1]), all[1:])
}

// nearest is the known word that was probably meant; empty for none.
func nearest(word string, known []string) string {
	best, distance := "", 1+max(1, len(word)/3)
	for _, k := range known {
		// A word that is a prefix of the other is near, if not nearest.
		short, long := min(word, k), max(word, k)
		if best == "" && len(short) > 2 && strings.HasPrefix(long, short) {
			best = k
		}
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that lead from a to b.
func editDistance(a, b string) int {
	from, to := []rune(a), []rune(b)
	if len(from) > 64 || len(to) > 64 {
		return 64 // no key is that long
	}
	var before []int
	row := make([]int, len(to)+1)
	for j := range row {
		row[j] = j
	}
	for i := range from {
		next := make([]int, len(to)+1)
		next[0] = i + 1
		for j := range to {
			cost := 1
			if from[i] == to[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && from[i] == to[j-1] && from[i-1] == to[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(to)]
}
