// Package size is how sizes are written in configurations.
package size

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size. In YAML it is a number of bytes, or a number with one of
// the units B, KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (of 1000).
type Bytes int64

var units = []struct {
	suffix string
	size   int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	{"B", 1},
}

// String is the size in the unit that makes the smallest whole number.
func (b Bytes) String() string {
	best := units[len(units)-1]
	for _, u := range units {
		if b != 0 && int64(b)%u.size == 0 && u.size > best.size {
			best = u
		}
	}
	return strconv.FormatInt(int64(b)/best.size, 10) + best.suffix
}

// MarshalText writes the size as String does.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// Parse reads what Bytes may be in YAML.
func Parse(s string) (Bytes, error) {
	size := int64(1)
	for _, u := range units {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			s, size = strings.TrimRight(number, " "), u.size
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/size {
		return 0, errors.New("not a size such as 512MiB or 2GiB, or a number of bytes")
	}
	return Bytes(int64(n) * size), nil
}
