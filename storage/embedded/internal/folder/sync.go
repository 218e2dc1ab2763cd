package folder

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// unsynced are objects that are not durable yet.
type unsynced struct {
	mu   sync.Mutex
	dirs map[string]map[string]bool // directories, and the paths of the objects in each
	n    int                        // objects

	syncing sync.Mutex // held by Sync
	lost    error      // what could not be made durable; guarded by syncing
}

func (u *unsynced) add(at location) {
	u.mu.Lock()
	defer u.mu.Unlock()
	dir, path := at.dir(), at.path()
	if u.dirs == nil {
		u.dirs, u.n = map[string]map[string]bool{}, 0
	}
	if u.dirs[dir] == nil {
		u.dirs[dir] = map[string]bool{}
	}
	if !u.dirs[dir][path] {
		u.dirs[dir][path] = true
		u.n++
	}
}

// syncEach is how many objects Sync makes durable one by one. That takes two waits for
// the disk each; for more it has the file system write all that it holds, which takes
// one, and may write much that others have left there.
const syncEach = 8

// Sync makes durable what PutLater stored before. An error is returned by every later
// call, too: after a disk has failed to keep something, that it keeps it the next time
// means nothing.
func (s *Store) Sync() error {
	u := &s.unsynced
	u.syncing.Lock()
	defer u.syncing.Unlock()
	if u.lost != nil {
		return u.lost
	}
	u.mu.Lock()
	dirs, n := u.dirs, u.n
	u.dirs, u.n = nil, 0
	u.mu.Unlock()
	var err error
	if n > syncEach {
		err = s.syncAll()
	} else {
		err = syncObjects(dirs)
	}
	if err != nil {
		u.lost = fmt.Errorf("make stored objects durable: %w", err)
	}
	return u.lost
}

// syncObjects makes objects durable, by their directories, that may be gone.
func syncObjects(dirs map[string]map[string]bool) error {
	for dir, paths := range dirs {
		for path := range paths {
			if err := syncFile(path); err != nil {
				return err
			}
		}
		if err := durable.SyncDirs(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// syncFile makes a file durable that may be gone.
func syncFile(path string) error {
	f, err := durable.Open(path, unix.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncAll makes all durable that the file system of the store holds.
func (s *Store) syncAll() error {
	root, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}
