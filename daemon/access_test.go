package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/config"
)

func TestTokenFile(t *testing.T) {
	token := access.NewToken()
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{
		token: "", token + "\n": "", "  " + token + "\r\nmore\n": "",
		"": "shorter than", "short\n": "shorter than", "\n" + token: "shorter than",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		digest, err := digestOf(config.Token{TokenFile: file})
		if want == "" && (err != nil || digest != access.DigestOf(token)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, %v", text, digest, err)
		}
	}
	dir := t.TempDir()
	_, err := openListeners(&config.Config{StateDir: dir, API: config.API{Host: "127.0.0.1", Socket: filepath.Join(dir, "s"), Tokens: []config.Token{{Name: "farm", TokenFile: dir + "/none"}}}}, nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "token farm") {
		t.Errorf("without the file: %v", err)
	}
}
