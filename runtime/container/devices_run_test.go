package container_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/container"
)

// A sheep's runner has the device that the sheep names and what comes with it, of
// whatever vendor, and a sheep whose device is not there says so.
func TestDevices(t *testing.T) {
	w := newWorld(t, testenv.StartContainerd(t))
	specs := filepath.Join(w.dir, "cdi")
	if err := os.MkdirAll(specs, 0o755); err != nil {
		t.Fatal(err)
	}
	weights := filepath.Join(w.dir, "ready")
	const spec = `{"cdiVersion": "0.6.0", "kind": "vendor.example/card", "devices": [{"name": "one", "containerEdits": {
		"env": ["CARD=one"],
		"deviceNodes": [{"path": "/dev/card1", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3, "permissions": "rw"}],
		"mounts": [{"hostPath": "READY", "containerPath": "/opt/vendor/ready", "options": ["ro", "bind"]}]}}]}`
	for path, text := range map[string]string{weights: "", filepath.Join(specs, "vendor.json"): strings.Replace(spec, "READY", weights, 1)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.gpus = container.GPUs{CDI: cdi.Config{Dirs: []string{specs}}}
	w.more = "devices: [vendor.example/card=one]\n"
	h := w.up(t, "expect CARD=one\nawait /dev/card1\nawait /opt/vendor/ready")
	h.Do("a", "")
	if task := w.daemon.Ctr(t, namespace, "containers", "info", w.task(t)); !strings.Contains(task, `"major": 1`) || !strings.Contains(task, `"/dev/card1"`) {
		t.Errorf("the device's rule is not in the spec:\n%s", task)
	}
	h.StopAndClose()

	w.more = "devices: [vendor.example/card=two]\n"
	s, err := w.driver(t).NewSheep("other", decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if err := s.Load(t.Context(), model, func(runtime.Event) {}); err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context(), func(runtime.Event) {})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "have vendor.example/card=one") {
		t.Errorf("got %v", err)
	}
}

// In hook mode the runtime runs NVIDIA's hook while the container is made, and
// the container's environment says which GPUs it is to add.
func TestHook(t *testing.T) {
	w := newWorld(t, testenv.StartContainerd(t))
	said := filepath.Join(w.dir, "said")
	hook := filepath.Join(w.dir, "nvidia-container-runtime-hook")
	// Like the real one it is told of the container on its standard input.
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n{ echo \"$1\"; cat; } > "+said+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.gpus = container.GPUs{Mode: container.ModeHook, Hook: hook, Capabilities: []string{"compute", "utility"}}
	w.more = "devices: [/dev/nvidia0, nvidia.com/gpu=2]\n"
	h := w.up(t, "expect NVIDIA_VISIBLE_DEVICES=0,2\nexpect NVIDIA_DRIVER_CAPABILITIES=compute,utility")
	h.Do("a", "")
	text, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	if command, state, _ := strings.Cut(string(text), "\n"); command != "prestart" || !strings.Contains(state, w.task(t)) || !strings.Contains(state, `"bundle"`) {
		t.Errorf("the hook was told %s", text)
	}
	h.StopAndClose()
}
