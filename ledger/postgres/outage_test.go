package postgres

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestOutage reports a series of failures once, and its end once.
func TestOutage(t *testing.T) {
	var log bytes.Buffer
	l := &Ledger{database: &database{}, cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	var o outage
	for _, err := range []error{nil, errors.New("refused"), errors.New("refused"), context.Canceled, nil, nil, context.Canceled, nil} {
		o.report(l, err, "it fails", "it works again")
	}
	if fails, works := strings.Count(log.String(), "it fails"), strings.Count(log.String(), "it works again"); fails != 1 || works != 1 {
		t.Errorf("%d failures and %d ends are logged:\n%s", fails, works, &log)
	}
}
