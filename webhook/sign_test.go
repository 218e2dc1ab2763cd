package webhook

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

func sampleDelivery() job.Delivery {
	m, err := newMessage("r", job.Event{Cursor: "7", At: time.Now().UTC(), Kind: job.EventEnded, Job: "größe", Run: 2}, func(job.Event) (json.RawMessage, error) {
		return json.RawMessage(`{"job_id":"größe & <more>"}`), nil
	})
	if err != nil {
		panic(err)
	}
	m.Began, m.Tries = time.Now(), 1
	return m
}

// The example of the specification.
func TestSign(t *testing.T) {
	secret, err := ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1614265330, 0)
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	if got := Sign([]Secret{secret}, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, []byte(`{"test": 2432232314}`)); got != want {
		t.Errorf("signed %q, want %q", got, want)
	}
	if fmt.Sprint(secret) != "*****" || secret.Text() != "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" {
		t.Errorf("shown as %v and %s", secret, secret.Text())
	}
}

func FuzzParseSecrets(f *testing.F) {
	f.Add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n\n whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ\r\n")
	f.Add("")
	f.Add("whsec_")
	f.Add("secret")
	f.Fuzz(func(t *testing.T, text string) {
		secrets, err := ParseSecrets(text)
		if err != nil {
			if text != "" && len(text) > 8 && strings.Contains(err.Error(), text) {
				t.Errorf("the error shows the text: %v", err)
			}
			return
		}
		for _, s := range secrets {
			again, err := ParseSecret(s.Text())
			if err != nil || string(again) != string(s) || len(s) < minSecret || len(s) > maxSecret {
				t.Errorf("%d bytes, %v", len(s), err)
			}
		}
		if len(secrets) == 0 {
			t.Error("none, and no error")
		}
	})
}
