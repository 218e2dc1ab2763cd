package access

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/internal/claims"
)

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(2, 3)
		take := func(who string, want bool) {
			t.Helper()
			if wait, ok := l.take(who); ok != want || !ok && (wait <= 0 || wait > time.Second/2) {
				t.Errorf("%s: %t, wait %v", who, ok, wait)
			}
		}
		for range 3 {
			take("a", true)
		}
		take("a", false)
		take("b", true)
		time.Sleep(time.Second / 2)
		take("a", true)
		take("a", false)
	})
	if _, ok := newLimits(0, 0).take("a"); !ok {
		t.Error("no limit is one")
	}
}

// However many come by once, memory does not grow with them.
func TestLimitsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(1, 1)
		for i := range 10 * mostAtRest {
			l.take(fmt.Sprint(i))
			if i%mostAtRest == 0 {
				time.Sleep(2 * time.Second)
			}
		}
		if len(l.each) > 2*mostAtRest {
			t.Errorf("%d are kept", len(l.each))
		}
		// Those that are not at rest are not forgotten.
		if _, ok := l.take(fmt.Sprint(10*mostAtRest - 1)); ok {
			t.Error("one that had its turn a moment ago")
		}
	})
}

func TestAddress(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:999": "192.0.2.1", "[::ffff:192.0.2.1]:9": "192.0.2.1", "[2001:db8:1:2:3::4]:9": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:9": "fe80::/64", "@": "@", "": "", "host:1": "host",
	} {
		if got := address(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// Who guesses is slowed down; who does not is not.
func TestGuessing(t *testing.T) {
	claims.Hold(t, "C6")
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(Config{Tokens: []Token{{Digest: DigestOf("t"), Caller: Caller{Name: "one"}}}})
		ask := func(token, from string) error {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = from
			r.Header.Set("Authorization", "Bearer "+token)
			_, err := g.Identify(r)
			return err
		}
		for i := range failureBurst {
			if _, ok := ask("guess", "192.0.2.1:1").(*Unknown); !ok {
				t.Fatalf("guess %d", i)
			}
		}
		if _, ok := ask("guess", "192.0.2.1:2").(*TooMany); !ok {
			t.Error("one guess more")
		}
		if err := ask("t", "192.0.2.1:3"); err != nil {
			t.Errorf("the right token from the same address: %v", err)
		}
		if _, ok := ask("guess", "192.0.2.2:1").(*Unknown); !ok {
			t.Error("another address")
		}
	})
}
