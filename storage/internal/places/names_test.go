package places

import (
	"path/filepath"
	"strings"
	"testing"
)

func FuzzCheckName(f *testing.F) {
	for _, seed := range []string{"inputs/x", "inputs/../x", "/x", "a//b", "a\x00b", "..", ".", "a/./b", "a/..b", "a\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) != nil {
			return
		}
		if !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.ContainsRune(name, 0) {
			t.Errorf("%q is allowed", name)
		}
	})
}

func TestLongNameIsShownByItsEnds(t *testing.T) {
	name := "outputs/" + strings.Repeat("é", maxKey)
	err := CheckName(name)
	const most = 300
	if err == nil || len(err.Error()) > most || !strings.HasPrefix(err.Error(), `"outputs/é`) || !strings.Contains(err.Error(), `é" is longer than 1024 bytes`) {
		t.Errorf("got %v", err)
	}
}
