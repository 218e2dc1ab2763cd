package daemon

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

// told is a shared ledger that notes what it is told of a node.
type told struct{ about []postgres.About }

func (r *told) Announce(_ context.Context, _ string, about postgres.About) error {
	r.about = append(r.about, about)
	return nil
}

func (*told) LateRenewals() int64 { return 0 }

func (*told) Nodes(context.Context) ([]postgres.Node, error) { return nil, nil }

// A node tells of its sheep and of the models on its disk when they change. The disk is
// looked at when a sheep has loaded another model, and else once a minute; where it cannot
// be, what was known stays.
func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := job.Model{Name: "m", Version: "1"}, job.Model{Name: "m", Version: "2"}
		ledger, loaded, disk, lists := &told{}, job.Model{}, []job.KeptModel{{Model: one}}, 0
		var failing error
		a := &announcer{
			registry: ledger, node: "a", about: postgres.About{Version: "v"}, log: slog.New(slog.DiscardHandler),
			sheep: func(context.Context) []job.Sheep { return []job.Sheep{{Name: "s", Type: "bare", Model: loaded}} },
			models: func(context.Context) ([]job.KeptModel, error) {
				lists++
				return disk, failing
			},
		}
		expect := func(when string, tellings, looks int, models ...job.Model) {
			t.Helper()
			a.announce(t.Context())
			if len(ledger.about) != tellings || lists != looks {
				t.Errorf("%s it was told %d times and listed %d times, expected %d and %d", when, len(ledger.about), lists, tellings, looks)
			}
			last := ledger.about[len(ledger.about)-1]
			if !reflect.DeepEqual(last.Models, models) || last.Version != "v" || last.Sheep[0].Model != loaded {
				t.Errorf("%s it said %+v", when, last)
			}
		}
		expect("at first", 1, 1, one)
		expect("unchanged", 1, 1, one)
		loaded, disk = two, []job.KeptModel{{Model: one}, {Model: two}}
		expect("with another model", 2, 2, one, two)
		disk = nil
		expect("too soon", 2, 2, one, two)
		time.Sleep(time.Minute)
		failing = errors.New("containerd is away")
		expect("unknown", 2, 3, one, two)
		time.Sleep(time.Minute)
		failing = nil
		expect("after a minute", 3, 4)
	})
}
