package job

import (
	"errors"
	"strings"
	"testing"
)

func TestNewWebhook(t *testing.T) {
	w, err := NewWebhook("https://example.com/hook?a=1", []EventKind{EventStarted, EventEnded, EventStarted})
	if err != nil || w.Events != "ended,started" || !w.Wants(EventStarted) || w.Wants(EventQueued) || w.IsZero() {
		t.Errorf("%+v, %v", w, err)
	}
	w, err = NewWebhook("http://[2001:db8::1]:8080", nil)
	if err != nil || w.Events != "" || !w.Wants(EventEnded) || w.Wants(EventStarted) {
		t.Errorf("%+v, %v", w, err)
	}
	for _, bad := range []string{"", "example.com", "ftp://example.com", "https://", "https:example.com", "https://user:secret@example.com", "https://example.com/#x", "https://example.com/" + strings.Repeat("a", MaxWebhookURL), "http://a b"} {
		var invalid *Invalid
		if _, err := NewWebhook(bad, nil); !errors.As(err, &invalid) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	if _, err := NewWebhook("https://example.com", []EventKind{EventProgress}); err == nil {
		t.Error("progress, which is in no log, can be sent")
	}
}

func FuzzWebhook(f *testing.F) {
	f.Add("https://example.com/hook", "ended")
	f.Add("http://ü.example:1?x", "queued,started")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, address, kind string) {
		w, err := NewWebhook(address, []EventKind{EventKind(kind)})
		if err != nil {
			return
		}
		text, err := w.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var again Webhook
		if err := again.UnmarshalText(text); err != nil || again != w && strings.ToValidUTF8(address, "\uFFFD") == address {
			t.Errorf("%+v became %+v, %v", w, again, err)
		}
	})
}
