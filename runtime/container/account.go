package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/oci"
)

// accountKey is a user's name in an image.
type accountKey struct {
	image digest.Digest
	user  string
}

// account finds who a user is in an image, whose files are at mounts.
func (h *host) account(mounts []mount.Mount, image digest.Digest, user string) (oci.Account, error) {
	key := accountKey{image, user}
	h.mu.Lock()
	account, ok := h.accounts[key]
	h.mu.Unlock()
	if ok {
		return account, nil
	}
	err := lookInto(mounts, func(files fs.FS) (err error) {
		account, err = oci.ResolveUser(files, user)
		return err
	})
	if err != nil {
		return oci.Account{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.accounts[key] = account
	return account, nil
}

// lookInto shows a snapshot's files to look. They are mounted in a mount
// namespace of one thread that ends with it, so that nothing stays mounted
// whatever becomes of this process.
func lookInto(mounts []mount.Mount, look func(fs.FS) error) error {
	result := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked
		result <- lookIntoHere(mounts, look)
	}()
	return <-result
}

func lookIntoHere(mounts []mount.Mount, look func(fs.FS) error) error {
	if len(mounts) != 1 {
		return fmt.Errorf("look into the image: %d mounts make its files, which is not supported", len(mounts))
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("look into the image: new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("look into the image: new mount namespace: %w", err)
	}
	m := mounts[0]
	const target = "/tmp" // of the namespace: nobody else sees it
	if m.Type == "bind" {
		if err := unix.Mount(m.Source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("look into the image: %w", err)
		}
	} else if err := mountLayers(m, target); err != nil {
		return fmt.Errorf("look into the image: %w", err)
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	return look(root.FS())
}

// mountLayers mounts a file system of layers. The kernel takes a page of
// options: where the paths of many layers are longer, they are given from the
// folder that holds them all.
func mountLayers(m mount.Mount, target string) error {
	const most = 4000
	data := strings.Join(m.Options, ",")
	if len(data) > most {
		at, short := shorten(m.Options)
		if err := unix.Chdir(at); err != nil {
			return err
		}
		if data = strings.Join(short, ","); len(data) > most {
			return errors.New("its layers are too many")
		}
	}
	return unix.Mount(m.Source, target, m.Type, 0, data)
}

// shorten makes the paths of an overlay's layers relative to the folder two
// above the first.
func shorten(options []string) (folder string, short []string) {
	for _, o := range options {
		name, value, ok := strings.Cut(o, "=")
		if !ok || name != "lowerdir" && name != "upperdir" && name != "workdir" {
			short = append(short, o)
			continue
		}
		paths := strings.Split(value, ":")
		for i, p := range paths {
			if folder == "" {
				folder = filepath.Dir(filepath.Dir(p))
			}
			if rel, err := filepath.Rel(folder, p); err == nil {
				paths[i] = rel
			}
		}
		short = append(short, name+"="+strings.Join(paths, ":"))
	}
	return folder, short
}
