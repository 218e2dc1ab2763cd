package remote

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/client"
)

func TestDetailFitsATable(t *testing.T) {
	j := client.Job{JobId: "a", ErrorDetails: &client.Failure{Message: strings.Repeat("文", detailCells) + "\nmore"}}
	row := jobRow(j, false)
	if detail := row[len(row)-1]; cells.StringWidth(detail) > detailCells || !strings.HasSuffix(detail, "文…") {
		t.Errorf("a table has %q", detail)
	}
	row = jobRow(j, true)
	if detail := row[len(row)-1]; detail != strings.Repeat("文", detailCells) {
		t.Errorf("a wide one has %q", detail)
	}
}
