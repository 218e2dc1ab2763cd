package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/iterait/shepherd/cli/remote"
)

// TestPrintErrors prints to a terminal's place and to the journal's.
func TestPrintErrors(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	for stream, want := range map[string]string{
		"": "one\ntwo\n", "1:2": "one\ntwo\n", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino): "<3>one\n<3>two\n",
	} {
		t.Setenv("JOURNAL_STREAM", stream)
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := file.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		printErrors(file, "one\ntwo")
		if got, err := os.ReadFile(file.Name()); string(got) != want || err != nil {
			t.Errorf("with JOURNAL_STREAM=%s: %q, %v", stream, got, err)
		}
	}
}

// TestLocate looks for a daemon that is not running.
func TestLocate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yml")
	text := "data_root: " + dir + "/data\nstate_dir: " + dir + "/state\nsheep: {}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := locate(file); !errors.Is(err, remote.ErrNoDaemon) || remote.ExitCode(err) != remote.ExitUnreachable {
		t.Errorf("a configuration whose daemon is not up: %v", err)
	}
}

// Who names no configuration is told where there is one, or what makes one.
func TestNoConfig(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := noConfig(); !strings.Contains(err.Error(), "`shepherdd init`") {
		t.Errorf("without any: %v", err)
	}
	if err := os.WriteFile(usualConfig, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := noConfig(); !strings.Contains(err.Error(), "-c "+usualConfig) {
		t.Errorf("beside one: %v", err)
	}
}

// A command that there is not is named, with those that it may have been.
func TestUnknownCommand(t *testing.T) {
	for typed, want := range map[string]string{
		"lss": `there is no command "lss"; did you mean logs or ls?`, "zebra": `there is no command "zebra"`,
	} {
		_, err := call(typed)
		var usage *usageError
		if !errors.As(err, &usage) || err.Error() != want {
			t.Errorf("%s: %v", typed, err)
		}
	}
}

// Help tells what each command is about.
func TestEveryCommandHasAGroup(t *testing.T) {
	for _, cmd := range newRoot("shepherd", Build{}).Commands() {
		if alone := cmd.Name() == "version" || cmd.Name() == "completion" || cmd.Name() == "help"; alone != (cmd.GroupID == "") {
			t.Errorf("%s is in the group %q", cmd.Name(), cmd.GroupID)
		}
	}
}
