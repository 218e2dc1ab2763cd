package day

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// puller is a containerd of the day's own, and a registry with one image, whose layer comes
// quickly at first, then so slowly that the pull is under way all day.
type puller struct {
	registry   *http.Server
	url        string
	containerd *exec.Cmd
	log        *os.File
	socket     string
}

// CanPull reports whether a Day can have a sheep that pulls an image, which needs root,
// containerd and runc.
func CanPull() bool {
	for _, program := range []string{"containerd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return false
		}
	}
	return os.Geteuid() == 0
}

const (
	layerSize  = 400_000_000
	quickly    = layerSize * 43 / 100
	slowly     = 420_000 // bytes a second
	mediaTypes = "application/vnd.oci.image."
)

const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = %q
`

func startPuller(ctx context.Context, dir string) (_ *puller, err error) {
	p := &puller{socket: filepath.Join(dir, "containerd.sock")}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.url = "http://" + listener.Addr().String()
	p.registry = &http.Server{Handler: slowRegistry(), ReadHeaderTimeout: time.Minute}
	go p.registry.Serve(listener) // until stop closes it
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	config := filepath.Join(dir, "containerd.toml")
	if err := write(config, fmt.Sprintf(containerdConfig, filepath.Join(dir, "containerd"), filepath.Join(dir, "containerd-state"), p.socket)); err != nil {
		return nil, err
	}
	if p.log, err = os.Create(filepath.Join(dir, "containerd.log")); err != nil {
		return nil, err
	}
	p.containerd = exec.Command("containerd", "--config", config)
	p.containerd.Stdout, p.containerd.Stderr = p.log, p.log
	p.containerd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.containerd.Start(); err != nil {
		p.containerd = nil
		return nil, err
	}
	for {
		if conn, err := net.Dial("unix", p.socket); err == nil {
			return p, conn.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("containerd does not answer; its log is %s", p.log.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *puller) stop() error {
	err := p.registry.Close()
	if p.containerd != nil {
		err = errors.Join(err, p.containerd.Process.Signal(syscall.SIGTERM))
		_ = p.containerd.Wait() // how it ended is in its log
	}
	if p.log != nil {
		err = errors.Join(err, p.log.Close())
	}
	return err
}

// slowRegistry serves the image align:v3. Its layer is never complete, and its digest is
// invented.
func slowRegistry() http.Handler {
	digest := func(content string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }
	layer := digest("a layer that nobody has")
	type object = map[string]any
	text := func(v any) string {
		out, _ := json.Marshal(v) // of maps and strings
		return string(out)
	}
	config := text(object{
		"architecture": "amd64", "os": "linux", "config": object{"Entrypoint": []string{"/model"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{layer}},
	})
	manifest := text(object{
		"schemaVersion": 2, "mediaType": mediaTypes + "manifest.v1+json",
		"config": object{"mediaType": mediaTypes + "config.v1+json", "digest": digest(config), "size": len(config)},
		"layers": []object{{"mediaType": mediaTypes + "layer.v1.tar", "digest": layer, "size": layerSize}},
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		send := func(contentType, content string) {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Docker-Content-Digest", digest(content))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			if r.Method != http.MethodHead {
				_, _ = w.Write([]byte(content)) // a client that has left cannot be told
			}
		}
		switch {
		case r.URL.Path == "/v2/":
		case strings.HasPrefix(r.URL.Path, "/v2/align/manifests/"):
			send(mediaTypes+"manifest.v1+json", manifest)
		case strings.HasSuffix(r.URL.Path, digest(config)):
			send("application/octet-stream", config)
		case strings.HasSuffix(r.URL.Path, layer):
			w.Header().Set("Content-Length", fmt.Sprint(layerSize))
			dribble(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

func dribble(w http.ResponseWriter, r *http.Request) {
	part := make([]byte, slowly/4)
	for sent := 0; sent < layerSize; sent += len(part) {
		if _, err := w.Write(part[:min(len(part), layerSize-sent)]); err != nil || r.Method == http.MethodHead {
			return
		}
		if sent < quickly {
			continue
		}
		_ = http.NewResponseController(w).Flush() // a client that has left shows at the next write
		select {
		case <-r.Context().Done():
			return
		case <-time.After(time.Second / 4):
		}
	}
}
