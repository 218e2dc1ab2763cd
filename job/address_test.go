package job

import (
	"reflect"
	"testing"
)

func TestAddress(t *testing.T) {
	for text, a := range map[string]Address{
		"":                        {},
		"dolly":                   {Sheep: "dolly"},
		"gpu-1/dolly":             {Node: "gpu-1", Sheep: "dolly"},
		"@gpu=a100":               {Labels: Labels{"gpu": "a100"}},
		"dolly@gpu=a100,zone=1":   {Sheep: "dolly", Labels: Labels{"zone": "1", "gpu": "a100"}},
		"@a%2Fb=%3D%2C%40+%2F,e=": {Labels: Labels{"a/b": "=,@ /", "e": ""}},
	} {
		if got := a.String(); got != text {
			t.Errorf("%+v is written as %q, want %q", a, got, text)
		}
		if got := ParseAddress(text); !reflect.DeepEqual(got, a) {
			t.Errorf("%q is read as %+v, want %+v", text, got, a)
		}
	}
	for _, c := range []struct {
		address string
		fits    bool
	}{
		{"", true}, {"dolly", true}, {"shaun", false}, {"gpu-1/dolly", true}, {"gpu-2/dolly", false}, {"gpu-1/shaun", false},
		{"@gpu=a100", true}, {"@gpu=h100", false}, {"@gpu=a100,zone=2", false}, {"dolly@gpu=a100", true}, {"shaun@gpu=a100", false}, {"@other=", false},
	} {
		if got := ParseAddress(c.address).Fits("gpu-1", "dolly", Labels{"gpu": "a100", "zone": "1"}); got != c.fits {
			t.Errorf("%q fits: %v", c.address, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("gpu-1/dolly@gpu=a100,zone=1")
	f.Add("@a%2Fb=%3D%2C%40")
	f.Add("@=,%zz=1")
	f.Fuzz(func(t *testing.T, text string) {
		once := ParseAddress(text).String()
		if twice := ParseAddress(once).String(); twice != once {
			t.Errorf("%q is read as %q, and that as %q", text, once, twice)
		}
	})
}
