package job

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestLabelsValidate(t *testing.T) {
	many := Labels{}
	for i := range MaxLabels + 1 {
		many[fmt.Sprint("k", i)] = ""
	}
	for name, good := range map[string]Labels{
		"none": nil, "one": {"batch": "42"}, "empty value": {"urgent": ""}, "longest": {strings.Repeat("k", MaxLabelKey): strings.Repeat("v", MaxLabelValue)},
		"any text": {"team/name.x_y-z": "Wölfe & Söhne = 1"},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for says, bad := range map[string]Labels{
		"there are 33":            many,
		"this one has 0":          {"": "x"},
		"this one has 64":         {strings.Repeat("k", MaxLabelKey+1): ""},
		`key "a=b"`:               {"a=b": ""},
		`key "-a"`:                {"-a": ""},
		`key "ä"`:                 {"ä": ""},
		"of a has 257 bytes":      {"a": strings.Repeat("v", MaxLabelValue+1)},
		"of a is not valid":       {"a": "\xff"},
		"control character '\\n'": {"a": "x\ny"},
	} {
		err := bad.Validate()
		var invalid *Invalid
		if !errors.As(err, &invalid) || invalid.Field != "labels" || !strings.Contains(invalid.Problem, says) {
			t.Errorf("%v: %v, which does not say %q", bad, err, says)
		}
	}
}

func TestLabelsMatch(t *testing.T) {
	l := Labels{"a": "1", "b": ""}
	for _, c := range []struct {
		wanted Labels
		want   bool
	}{
		{nil, true}, {Labels{"a": "1"}, true}, {Labels{"a": "1", "b": ""}, true}, {Labels{"a": "2"}, false}, {Labels{"c": ""}, false}, {Labels{"a": "1", "c": ""}, false},
	} {
		if got := l.Match(c.wanted); got != c.want {
			t.Errorf("%v matches %v: %v", l, c.wanted, got)
		}
	}
}
