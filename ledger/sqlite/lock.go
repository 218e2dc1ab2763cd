package sqlite

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/iterait/shepherd/internal/durable"
)

// lock locks the file path.lock, so that only this process has the ledger at path open:
// two daemons on one file would each claim the same jobs. Closing the returned lock, and
// the end of the process, unlock it.
func lock(path string) (*durable.FileLock, error) {
	l, _, err := durable.Lock(path+".lock", 0)
	var busy *durable.BusyError
	if errors.As(err, &busy) {
		owner := ""
		if pid, err := strconv.Atoi(busy.Text); err == nil {
			owner = fmt.Sprintf(" (%d)", pid)
		}
		return nil, &lockedError{path: path, owner: owner}
	}
	if err != nil {
		return nil, err
	}
	// The process id is only for the message of a lockedError: the lock holds without it,
	// so a full disk is no error here.
	_ = l.SetText(strconv.Itoa(os.Getpid()))
	return l, nil
}
