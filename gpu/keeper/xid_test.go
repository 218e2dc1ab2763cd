package keeper

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

// TestXidsAreDocumented compares the table in docs/gpus.md with what is done.
func TestXidsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/gpus.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[uint64]XidRule)
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `(\\w+)` \\| (.*) \\|$").FindAllStringSubmatch(string(text), -1) {
		code, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		documented[code] = XidRule{Action(m[2]), m[3]}
	}
	rules := DefaultXids()
	for code, rule := range rules {
		if documented[code] != rule {
			t.Errorf("Xid %d: %+v is documented as %+v", code, rule, documented[code])
		}
	}
	if len(documented) != len(rules) {
		t.Errorf("%d Xids are documented, there are %d", len(documented), len(rules))
	}
	rules[31] = XidRule{}
	if DefaultXids()[31].Action != FailJob {
		t.Error("what one caller changes, another one gets")
	}
}
