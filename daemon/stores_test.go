package daemon

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/logging"
)

// TestReportStorage has storage answer an hour after the start, and another time never.
func TestReportStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ping := func(context.Context) error {
			if time.Since(begin) < time.Hour {
				return errors.New("connection refused")
			}
			return nil
		}
		var out lockedBuffer
		var closing closers
		reportStorage(t.Context(), ping, "http://s3.example.com", logging.New(&out, logging.Config{}), &closing)
		if text := out.String(); !strings.Contains(text, "The storage does not answer; jobs wait until it does") || !strings.Contains(text, "connection refused") {
			t.Errorf("at the start: %s", text)
		}
		time.Sleep(time.Hour + longestPing + time.Second)
		closing.close()
		if text := out.String(); strings.Count(text, "appears to be up and running") != 1 || strings.Count(text, "\n") != 2 {
			t.Errorf("when it answers: %s", text)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		var closing closers
		reportStorage(t.Context(), func(context.Context) error { return errors.New("away") }, "", logging.New(&out, logging.Config{}), &closing)
		time.Sleep(time.Minute)
		closing.close() // waits for what asks
		if text := out.String(); strings.Count(text, "\n") != 1 {
			t.Errorf("got %s", text)
		}
	})
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestPresignerOf makes addresses for where clients reach the storage, and none where that
// is not known.
func TestPresignerOf(t *testing.T) {
	keys := config.Storage{AccessKey: "access", SecretKey: config.NewSecret("secret-key")}
	for _, c := range []struct{ url, public, want string }{
		{"", "", ""},
		{"", "https://files.example.org", "https://files.example.org/job-1/outputs/x?"},
		{"http://10.0.0.1:9000", "", "http://10.0.0.1:9000/job-1/outputs/x?"},
		{"http://10.0.0.1:9000", "https://files.example.org", "https://files.example.org/job-1/outputs/x?"},
	} {
		s := keys
		s.URL, s.PublicURL = c.url, c.public
		presigner, err := presignerOf(s)
		if err != nil {
			t.Fatal(err)
		}
		if presigner == nil || c.want == "" {
			if c.want != "" || presigner != nil {
				t.Errorf("%+v: %v", c, presigner)
			}
			continue
		}
		if address, err := presigner.Presign(t.Context(), "job-1", "outputs/x", time.Minute); err != nil || !strings.HasPrefix(address, c.want) {
			t.Errorf("%+v: %s, %v", c, address, err)
		}
	}
}
