package sqlite

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/iterait/shepherd/internal/durable"
)

// lock makes this process the only one that has the ledger at path open, by a
// lock on the file beside it that ends with the process. Two daemons on one
// file would each hand out the same jobs. Closing the returned lock unlocks.
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
	// The number only helps the reader of a lockedError: the lock holds without
	// it, so a full disk is no reason to stop here.
	_ = l.Sign(strconv.Itoa(os.Getpid()))
	return l, nil
}
