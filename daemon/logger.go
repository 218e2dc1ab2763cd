package daemon

import (
	"io"
	"log/slog"
	"os"

	"github.com/iterait/shepherd/internal/logging"
	"github.com/iterait/shepherd/internal/systemd"
)

// newLogger creates the daemon's log, and returns a function that closes it. The level may
// change later.
func newLogger(to io.Writer, format string, level slog.Leveler) (*slog.Logger, func(), error) {
	f, isFile := to.(*os.File)
	if format == "journal" || format == "auto" && isFile && systemd.Journaled(f) {
		log, journal, err := logging.NewJournal(logging.JournalConfig{Level: level, Identifier: "shepherdd"})
		if err != nil {
			return nil, nil, err
		}
		return log, func() { _ = journal.Close() }, nil
	}
	return logging.New(to, logging.Config{Level: level, JSON: format == "json"}), func() {}, nil
}
