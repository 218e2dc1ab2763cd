package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"
)

// FlockChange is what has changed of the flock: one of its fields is set, or none, which
// shows that the daemon is there.
type FlockChange struct {
	Flock *Flock
	GPUs  *GPUList
	Jobs  *FlockEvents
	// Lost is why the connection was lost; it is made again.
	Lost error
}

// FollowFlock returns the state of the sheep, the queue and the GPUs, whole,
// and then whenever it changes. It connects again where the daemon goes away. It ends with
// ctx, whose error it yields, or with an answer that is an error.
func FollowFlock(ctx context.Context, c *ClientWithResponses) iter.Seq2[FlockChange, error] {
	return func(yield func(FlockChange, error) bool) {
		for pause := firstPause; ; pause = min(2*pause, longestPause) {
			response, err := c.FollowFlock(ctx, &FollowFlockParams{})
			if err == nil {
				err = CheckStream(response)
			}
			if err == nil {
				var left bool
				left, err = relayFlock(response, yield)
				if left {
					return
				}
				pause = firstPause
			}
			var refused *StatusError
			switch {
			case ctx.Err() != nil:
				yield(FlockChange{}, ctx.Err())
				return
			case errors.As(err, &refused) && !mayPass(refused.Status):
				yield(FlockChange{}, err)
				return
			case !yield(FlockChange{Lost: err}, nil):
				return
			}
			if refused != nil {
				pause = max(pause, refused.RetryAfter)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// errStreamEnded is why a stream is lost that its daemon has ended.
var errStreamEnded = errors.New("the daemon has ended the stream")

// relayFlock yields what one connection brings; left says that the caller wants no more.
func relayFlock(response *http.Response, yield func(FlockChange, error) bool) (left bool, err error) {
	defer response.Body.Close()
	for m, err := range messages(response.Body) {
		if err != nil {
			return false, err
		}
		var change FlockChange
		switch m.name {
		case "flock":
			err = json.Unmarshal(m.data, &change.Flock)
		case "gpus":
			err = json.Unmarshal(m.data, &change.GPUs)
		case "jobs":
			err = json.Unmarshal(m.data, &change.Jobs)
		}
		if err != nil {
			return false, fmt.Errorf("read how the flock is: %w", err)
		}
		if !yield(change, nil) {
			return true, nil
		}
	}
	return false, errStreamEnded
}
