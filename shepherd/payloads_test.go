package shepherd

import (
	"fmt"
	"testing"

	"github.com/iterait/shepherd/job"
)

func TestPayloads(t *testing.T) {
	var p payloads
	p.keep("a", []byte("one"))
	p.keep("empty", []byte{})
	if got, ok := p.take("a"); !ok || string(got) != "one" {
		t.Errorf("took %q, %v", got, ok)
	}
	if _, ok := p.take("a"); ok {
		t.Error("a payload was given out twice")
	}
	if got, ok := p.take("empty"); !ok || len(got) != 0 {
		t.Errorf("took %q, %v of an empty payload", got, ok)
	}
	p.keep("again", []byte("old"))
	p.keep("again", nil) // submitted again, without a payload
	if _, ok := p.take("again"); ok {
		t.Error("an earlier run's payload was given out")
	}
	p.keep("large", make([]byte, maxPayload+1))
	if _, ok := p.take("large"); ok {
		t.Error("a large payload was remembered")
	}
	for n := range 200 {
		p.keep(job.ID(fmt.Sprint(n)), make([]byte, maxPayload))
		if p.bytes > maxPayloads || len(p.kept) > maxPayloads/maxPayload {
			t.Fatalf("%d payloads of %d bytes are remembered", len(p.kept), p.bytes)
		}
	}
	if _, ok := p.take("199"); !ok {
		t.Error("the latest payload was forgotten")
	}
	if _, ok := p.take("0"); ok {
		t.Error("the oldest payload was remembered beyond the bound")
	}
}
