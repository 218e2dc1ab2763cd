package size

import "testing"

// FuzzParse: a size is not negative, and parsing its text gives the same size.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"0", "512", "8g", "512m", "400M", "512Mi", "2gb", "64MiB", "1.5G", "-1", " 3 k ", "9223372036854775807", "8E", "0x10", "1e3", "Ki"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d bytes", text, n)
		}
		again, err := Parse(n.String())
		if err != nil || again != n {
			t.Errorf("%q is %d bytes, written as %s, read as %d, %v", text, n, n, again, err)
		}
	})
}
