package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/claims"
)

// What the command prints is a configuration that lets the token in.
func TestTokenNew(t *testing.T) {
	claims.Hold(t, "C5")
	var out, told bytes.Buffer
	root := newRoot("shepherdd", Build{})
	root.SetArgs([]string{"token", "new", "--name", "farm", "--scope", "read,submit", "--tenant", "wool"})
	root.SetOut(&out)
	root.SetErr(&told)
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(out.String())
	if strings.Contains(told.String(), token) {
		t.Error("the token stands where it may be kept")
	}
	_, lines, ok := strings.Cut(told.String(), "\n\n")
	if !ok {
		t.Fatalf("told %s", &told)
	}
	file := filepath.Join(t.TempDir(), "c.yml")
	if err := os.WriteFile(file, []byte("data_root: /tmp/x\nsheep: {}\napi:\n  tokens:\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Loader{}.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.API.Tokens; len(got) != 1 || got[0].Name != "farm" || got[0].Hash != access.DigestOf(token).String() || got[0].Tenant != "wool" || len(got[0].Scopes) != 2 {
		t.Errorf("%+v", got)
	}
	root.SetArgs([]string{"token", "new", "--scope", "everything"})
	var usage *usageError
	if err := root.Execute(); !errors.As(err, &usage) {
		t.Errorf("an unknown scope: %v", err)
	}
}
