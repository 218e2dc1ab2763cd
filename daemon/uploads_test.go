package daemon

import (
	"errors"
	"testing"

	"github.com/iterait/shepherd/job"
)

func TestEmbeddedHost(t *testing.T) {
	for _, c := range []struct{ listens, host, want string }{
		{"127.0.0.1", "", "127.0.0.1"},
		{"127.0.0.1", "localhost", "localhost"},
		{"127.0.0.1", "127.0.0.1", "127.0.0.1"},
		{"::1", "[::1]", "::1"},
		{"127.0.0.1", "gpu1", ""},
		{"127.0.0.1", "192.0.2.1", ""},
		{"0.0.0.0", "gpu1", "gpu1"},
		{"::", "[2001:db8::1]", "2001:db8::1"},
		{"::", "", "127.0.0.1"},
		{"192.0.2.1", "gpu1", "192.0.2.1"},
	} {
		got, err := embeddedHost(c.listens, c.host)
		var none *job.NoUploads
		if got != c.want || c.want == "" && !errors.As(err, &none) || c.want != "" && err != nil {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
