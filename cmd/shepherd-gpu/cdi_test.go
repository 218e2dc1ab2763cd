//go:build cgo

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The specs of made-up machines are kept whole. ROOT is where the driver's files
// are.
func TestSpec(t *testing.T) {
	hook := filepath.Join(t.TempDir(), hookName)
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho 'COMMANDS:'\nfor h in create-symlinks enable-cuda-compat update-ldcache disable-device-node-modification; do echo \"   $h  does so\"; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, new := range machines() {
		t.Run(name, func(t *testing.T) {
			root := driverRoot(t, 8)
			var out bytes.Buffer
			err := run(t.Context(), new(), []string{"cdi", "--mode", "nvml", "--driver-root", root, "--dev-root", root, "--hook", hook}, &out)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.NewReplacer(root, "ROOT", hook, "HOOK").Replace(out.String())
			expected := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(expected, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(expected)
			if errors.Is(err, fs.ErrNotExist) || got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if strings.Contains(got, "update-application-profile") {
				t.Error("a hook is there that the host does not know")
			}
		})
	}
}

func TestSpecTroubles(t *testing.T) {
	if err := run(t.Context(), machines()["dgxa100"](), []string{"cdi", "--mode", "nvml", "--driver-root", t.TempDir(), "--hook", "/bin/true"}, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "make a CDI spec") {
		t.Errorf("got %v without a driver's files", err)
	}
	if err := run(t.Context(), machines()["dgxa100"](), []string{"cdi", "--hook", "/bin/false"}, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "/bin/false") {
		t.Errorf("got %v with a hook that says nothing", err)
	}
}

func TestUnknownHooks(t *testing.T) {
	const old = `NAME:
   NVIDIA CDI Hook - create-symlinks and more

COMMANDS:
   update-ldcache      Update ldcache in a container
   create-symlinks, s  A hook to create symlinks
   help, h             Shows a list of commands

GLOBAL OPTIONS:
   --debug, -d  chmod is no option
`
	if got, want := unknownHooks(old), []string{"update-application-profile", "chmod", "disable-device-node-modification", "enable-cuda-compat", "apply-cuda-memory-limits"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := unknownHooks(""); len(got) != len(hooks) {
		t.Errorf("got %q", got)
	}
	// The replacement for a missing program of the machine knows all of them.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), hookName)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	if _, unknown, err := findHook(link); err != nil || len(unknown) > 0 {
		t.Errorf("got %q, %v", unknown, err)
	}
}
