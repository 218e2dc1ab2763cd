package daemon

import (
	"path/filepath"
	"testing"
)

// TestCredentials finds the service's credentials only where nothing else says
// where they are, and only where they may be read.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	places := []string{filepath.Join(dir, "none"), dir}
	if got, ok := environmentWith(places, envCredentials); !ok || got != dir {
		t.Errorf("got %q, %v", got, ok)
	}
	if got, ok := environmentWith(places[:1], envCredentials); ok {
		t.Errorf("from nowhere came %q", got)
	}
	if got, ok := environmentWith(places, "SHEPHERD_TEST_UNSET"); ok {
		t.Errorf("another variable is %q", got)
	}
	t.Setenv(envCredentials, "/elsewhere")
	if got, _ := environmentWith(places, envCredentials); got != "/elsewhere" {
		t.Errorf("what the environment says gives way to %q", got)
	}
}
