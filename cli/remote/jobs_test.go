package remote

import (
	"strings"
	"testing"

	"github.com/iterait/shepherd/client"
)

// TestSheepOfAJob names the sheep that has the job, or had it last, or is to have it.
func TestSheepOfAJob(t *testing.T) {
	for want, j := range map[string]client.Job{
		"has":       {Sheep: new("has"), SheepId: new("addressed")},
		"had":       {LastSheep: new("had"), SheepId: new("addressed")},
		"addressed": {SheepId: new("addressed")},
		"-":         {},
	} {
		if row := jobRow(j, false); row[3] != want {
			t.Errorf("the table has %q, want %q", row[3], want)
		}
	}
}

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
