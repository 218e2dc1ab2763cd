package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// send claims messages that are due and tries them, until ctx ends and the tries under way
// have ended.
func (d *Dispatcher) send(ctx context.Context) {
	busy := map[string]int{} // tries under way, by receiver
	under := 0
	over := make(chan string, senders+claimBatch)
	rest := time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		var next time.Duration
		if under < senders {
			due, until, err := d.cfg.Ledger.ClaimDeliveries(ctx, claimBatch, full(busy), hold)
			if ctx.Err() != nil {
				break
			}
			next = until
			if err != nil {
				d.cfg.Log.Error("Cannot read the messages for receivers of webhooks; retrying", "error", err)
				next, rest = rest, min(2*rest, 30*time.Second)
			} else {
				rest = time.Second
			}
			for _, m := range due {
				busy[m.Receiver]++
				under++
				d.running.Go(func() {
					d.deliver(ctx, m)
					over <- m.Receiver
				})
			}
			if len(due) == claimBatch {
				continue
			}
		}
		if d.cfg.Shared && (next == 0 || next > lookEvery) {
			next = lookEvery
		}
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-d.wake:
		case receiver := <-over:
			for receiver != "" { // all that have ended
				if busy[receiver]--; busy[receiver] == 0 {
					delete(busy, receiver)
				}
				under--
				select {
				case receiver = <-over:
				default:
					receiver = ""
				}
			}
		}
	}
}

// full returns the receivers with the most tries under way that are allowed.
func full(busy map[string]int) []string {
	var names []string
	for receiver, n := range busy {
		if n >= claimBatch {
			names = append(names, receiver)
		}
	}
	return names
}

// deliver tries a message and stores the result.
func (d *Dispatcher) deliver(ctx context.Context, m job.Delivery) {
	result := d.try(ctx, m)
	if ctx.Err() != nil && result.State != job.DeliveryDelivered { // cancelled by Stop: the receiver has not failed
		result = ledger.DeliveryResult{State: job.DeliveryWaiting, Pause: time.Second, Problem: "the daemon stopped during the try"}
	}
	log := d.cfg.Log.With("message", m.ID, "receiver", shownReceiver(m.Receiver), "job", m.Job, "try", m.Tries)
	switch result.State {
	case job.DeliveryDelivered:
		log.Debug("Message delivered", "status", result.Status)
	case job.DeliveryGivenUp:
		log.Warn("Message given up", "status", result.Status, "problem", result.Problem)
	default:
		log.Info("Message not delivered; it is tried again", "status", result.Status, "problem", result.Problem, "pause", result.Pause)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryTime)
	defer cancel()
	if err := d.cfg.Ledger.SettleDelivery(ctx, m.ID, m.Tries, result); err != nil {
		log.Error("Cannot record that a message was sent; it is sent again", "error", err)
	}
	if d.cfg.Tried != nil {
		name := ""
		if _, configured := d.receivers[m.Receiver]; configured {
			name = m.Receiver
		}
		d.cfg.Tried(name, result.State)
	}
}

// shownReceiver returns a receiver for the log. The path and the query of a URL that a client
// chose may contain secrets, and are left out.
func shownReceiver(receiver string) string {
	u, err := url.Parse(receiver)
	if err != nil || u.Host == "" {
		return receiver
	}
	return u.Scheme + "://" + u.Host
}

// try sends a message once.
func (d *Dispatcher) try(ctx context.Context, m job.Delivery) ledger.DeliveryResult {
	address, secrets, err := d.target(m)
	if err != nil {
		return result(m, 0, err.Error(), 0, false)
	}
	if address == "" {
		return result(m, 0, "the receiver "+m.Receiver+" is not configured any more", 0, true)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(m.Payload))
	if err != nil {
		return result(m, 0, err.Error(), 0, true)
	}
	now := time.Now()
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", d.cfg.UserAgent)
	request.Header.Set("Webhook-Id", m.ID)
	request.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	request.Header.Set("Webhook-Signature", Sign(secrets, m.ID, now, m.Payload))
	answer, err := d.client.Do(request)
	if err != nil {
		var asked *url.Error
		if errors.As(err, &asked) {
			err = asked.Err // without the URL
		}
		var refused *RefusedAddress
		return result(m, 0, err.Error(), 0, errors.As(err, &refused))
	}
	defer answer.Body.Close()
	status := answer.StatusCode
	if status != http.StatusSwitchingProtocols { // after that ctx does not end a read
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // so that the connection can be used again
	}
	if status >= 200 && status < 300 {
		return ledger.DeliveryResult{State: job.DeliveryDelivered, Status: status}
	}
	problem := "the receiver answered " + strings.TrimSpace(strconv.Itoa(status)+" "+http.StatusText(status))
	if status >= 300 && status < 400 {
		problem += "; redirects are not followed"
	}
	return result(m, status, problem, retryAfter(answer.Header, now), status == http.StatusGone)
}

// target returns the URL of a message's receiver, empty for one that is not configured any
// more, and the secrets with which the message is signed.
func (d *Dispatcher) target(m job.Delivery) (address string, secrets []Secret, err error) {
	read := func() ([]Secret, error) { return d.cfg.JobSecrets(m.Tenant) }
	if r, ok := d.receivers[m.Receiver]; ok {
		address, read = r.URL, r.Secrets
	} else if job.CheckWebhookURL(m.Receiver) == nil && d.cfg.JobSecrets != nil {
		address = m.Receiver
	} else {
		return "", nil, nil
	}
	secrets, err = read()
	if err != nil {
		return "", nil, fmt.Errorf("read the secret: %w", err)
	}
	return address, secrets, nil
}

// result returns the result of a failed try: the message is tried again, unless that cannot
// help or its time is over.
func result(m job.Delivery, status int, problem string, atLeast time.Duration, useless bool) ledger.DeliveryResult {
	r := ledger.DeliveryResult{State: job.DeliveryWaiting, Pause: max(backoff(m.Tries), atLeast), Status: status, Problem: problem}
	if useless || time.Now().Add(r.Pause).After(m.Began.Add(giveUpAfter)) {
		r.State, r.Pause = job.DeliveryGivenUp, 0
	}
	return r
}

// backoff returns the pause after so many tries, with a jitter of up to a fifth.
func backoff(tries int) time.Duration {
	mean := longestPause
	if shift := max(tries-1, 0); shift < 16 {
		mean = min(firstPause<<shift, longestPause)
	}
	return mean*4/5 + rand.N(mean*2/5)
}

// retryAfter returns the pause that a receiver asks for, at most longestPause.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return min(time.Duration(min(max(seconds, 0), 1<<20))*time.Second, longestPause)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), longestPause)
	}
	return 0
}
