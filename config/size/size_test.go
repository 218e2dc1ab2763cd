package size

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "17": 17, "1B": 1, "16MiB": 16 << 20, "2 GiB": 2 << 30, "1TiB": 1 << 40, "3kB": 3000, "5TB": 5e12, "4KiB": 4096,
		"9223372036854775807": math.MaxInt64,
		"8g":                  8 << 30, "512m": 512 << 20, "400M": 400 << 20, "512Mi": 512 << 20, "2gb": 2 << 30, "64mb": 64 << 20, "1.5g": 3 << 29, "1.5GiB": 3 << 29, "10b": 10, "1 G": 1 << 30, "2GB": 2e9,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "B", "MiB", "-1", "1.5", "1.5B", "1.GiB", ".5g", "1e3g", "0x1g", "1mib", "1KB", "infg", "99999999999999999999.5g", "1 000", "9223372036854775808", "9223372036854775807B0", "8388608TiB", "+1"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := Bytes(rapid.Int64Range(0, math.MaxInt64).Draw(t, "size"))
		if got, err := Parse(b.String()); err != nil || got != b {
			t.Fatalf("%d is written as %s and read as %d, %v", b, b, got, err)
		}
	})
}

func TestText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 1 << 60: "1.0 EiB"} {
		if got := Text(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
