package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
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
