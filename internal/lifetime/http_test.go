package lifetime

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hang is the time limit of operations that take far less.
const hang = time.Minute

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A request in progress is answered although the server is stopping; one that takes longer than
// the grace period is aborted.
func TestServe(t *testing.T) {
	for name, c := range map[string]struct {
		grace time.Duration
		ok    bool
	}{"finishes": {hang, true}, "broken off": {time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			begun, goOn := make(chan struct{}), make(chan struct{})
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				select {
				case <-goOn:
				case <-r.Context().Done():
				}
				io.WriteString(w, "done")
			})}
			l := listen(t)
			ctx, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- Serve(ctx, s, l, c.grace) }()
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			asked := make(chan error, 1)
			go func() {
				answer, err := client.Get("http://" + l.Addr().String())
				if err == nil {
					_, err = io.ReadAll(answer.Body)
					answer.Body.Close()
				}
				asked <- err
			}()
			<-begun
			stop()
			if c.ok {
				close(goOn)
			}
			if err := <-asked; (err == nil) != c.ok {
				t.Errorf("the request under way: %v", err)
			}
			select {
			case err := <-served:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(hang):
				t.Fatal("Serve does not return")
			}
			if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
				t.Error("the listener is still open")
			}
		})
	}
}

func TestServeFails(t *testing.T) {
	l := listen(t)
	l.Close()
	if err := Serve(t.Context(), &http.Server{}, l, hang); err == nil {
		t.Error("serving on a closed listener is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, &http.Server{}, listen(t), hang); err != nil {
		t.Errorf("told to end before it began: %v", err)
	}
}
