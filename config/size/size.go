// Package size parses and formats sizes in configurations.
package size

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size. In YAML it is a number of bytes, or a number with one of the units
// B, KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (of 1000). The forms that
// compose and Kubernetes files have are read as these read them, as powers of 1024:
// k, m, g, t in either case, kb, mb, gb, tb, and Ki, Mi, Gi, Ti.
type Bytes int64

var units = []struct {
	suffix string
	size   int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	{"B", 1},
}

// String returns the size in the unit with the smallest whole number.
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

// foreign are units that are parsed and not written.
var foreign = map[string]int64{
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40,
	"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
	"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"b": 1, "": 1,
}

var errSize = errors.New("not a size such as 512MiB or 2GiB, or a number of bytes")

// Parse parses a size in any of the forms of Bytes.
func Parse(s string) (Bytes, error) {
	number := strings.TrimRight(s, "BKMGTbkmgti")
	suffix := s[len(number):]
	size, known := foreign[suffix]
	for _, u := range units {
		if u.suffix == suffix {
			size, known = u.size, true
		}
	}
	number = strings.TrimRight(number, " ")
	if !known {
		return 0, errSize
	}
	if whole, fraction, ok := strings.Cut(number, "."); ok && size > 1 {
		f, err := strconv.ParseFloat(number, 64)
		if err != nil || !digits(whole) || !digits(fraction) || f*float64(size) >= math.MaxInt64 {
			return 0, errSize
		}
		return Bytes(f * float64(size)), nil
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/size {
		return 0, errSize
	}
	return Bytes(int64(n) * size), nil
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// Text formats a number of bytes for people, rounded: 10.1 KiB.
func Text(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 999.95 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
