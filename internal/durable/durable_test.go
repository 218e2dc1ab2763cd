package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, was, err := Lock(path, 0)
	if err != nil || was != "" {
		t.Fatalf("%q, %v", was, err)
	}
	if err := first.SetText("one and a longer text"); err != nil {
		t.Fatal(err)
	}
	if err := first.SetText("one"); err != nil {
		t.Fatal(err)
	}
	var busy *BusyError
	if _, _, err := Lock(path, 20*time.Millisecond); !errors.As(err, &busy) || busy.Text != "one" || busy.Path != path {
		t.Fatalf("a second lock: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { first.Close() })
	second, was, err := Lock(path, time.Minute)
	if err != nil || was != "one" {
		t.Fatalf("%q, %v", was, err)
	}
	second.Close()
	if _, _, err := Lock(filepath.Join(path, "below"), 0); err == nil {
		t.Error("a lock below a file")
	}
}

// A child that was forked while the lock was held, and has not executed its program
// yet, has the file open, too: it does not keep the lock.
func TestLockOutlivedByADescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, _, err := Lock(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	child, err := syscall.Dup(int(first.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, _, err := Lock(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"first", "second, longer", ""} {
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err != nil || statErr != nil || string(got) != text || info.Mode().Perm() != 0o640 {
			t.Errorf("%q, %v, %v", got, info.Mode(), err)
		}
	}
	if err := WriteFile(filepath.Join(path, "below"), nil, 0o600); err == nil {
		t.Error("a file below a file")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left are %v", entries)
	}
}
