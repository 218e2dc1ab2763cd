package webhook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestGuard(t *testing.T) {
	g := newGuard([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("198.51.100.7/32")})
	g.own = func() ([]net.Addr, error) {
		_, network, _ := net.ParseCIDR("8.8.8.8/24")
		network.IP = net.ParseIP("8.8.8.8")
		_, six, _ := net.ParseCIDR("2a00:1450::1/64")
		six.IP = net.ParseIP("2a00:1450::1")
		return []net.Addr{network, six}, nil
	}
	for address, allowed := range map[string]bool{
		"8.8.4.4": true, "8.8.8.9": true, "2a00:1450::2": true,
		"8.8.8.8": false, "::ffff:8.8.8.8": false, "2a00:1450::1": false, // this machine's
		"127.0.0.1": false, "127.1.2.3": false, "::1": false, "0.0.0.0": false, "::": false, "::ffff:127.0.0.1": false, "::127.0.0.1": false,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "168.63.129.16": false, "::ffff:168.63.129.16": false, "168.63.129.17": true, "100.64.0.1": false, "::ffff:10.0.0.1": false,
		"fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "224.0.0.1": false, "255.255.255.255": false, "ff02::1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false,
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.1": false, "fd00::5": true, "fd00:0:0:1::5": false, "198.51.100.7": true, "198.51.100.8": false,
	} {
		err := g.check(netip.MustParseAddr(address))
		var refused *RefusedAddress
		if allowed && err != nil || !allowed && !errors.As(err, &refused) {
			t.Errorf("%s: %v, allowed should be %v", address, err, allowed)
		}
	}
	g.own = func() ([]net.Addr, error) { return nil, errors.New("no list") }
	if err := g.check(netip.MustParseAddr("8.8.4.4")); err == nil {
		t.Error("an address is allowed although it may be this machine's")
	}
}

// A name is resolved before its address is checked, and redirects are not followed.
func TestTransport(t *testing.T) {
	asked := 0
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	defer receiver.Close()
	_, port, err := net.SplitHostPort(receiver.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTP_PROXY", receiver.URL)
	post := func(address string, allow ...netip.Prefix) (int, error) {
		d := New(Config{Allow: allow})
		defer d.Stop()
		answer, err := d.client.Post(address, "application/json", strings.NewReader("{}"))
		if err != nil {
			return 0, err
		}
		answer.Body.Close()
		return answer.StatusCode, nil
	}
	for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]"} {
		var refused *RefusedAddress
		if _, err := post("http://" + host + ":" + port); !errors.As(err, &refused) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if asked != 0 {
		t.Fatalf("%d requests were made", asked)
	}
	if status, err := post("http://localhost:"+port, netip.MustParsePrefix("127.0.0.0/8")); err != nil || status != 307 || asked != 1 {
		t.Errorf("allowed: %d, %v, %d requests", status, err, asked)
	}
}

// The reference library of Standard Webhooks accepts messages signed with any of the secrets,
// and no others.
func TestReference(t *testing.T) {
	node := testenv.Command(t, "node", "nodejs")
	modules, err := filepath.Abs(cmp.Or(os.Getenv("SHEPHERD_TEST_WEBHOOKS"), "../.cache/webhooks"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "node_modules/standardwebhooks/package.json")); err != nil {
		testenv.Missing(t, "standardwebhooks from npm", "make .cache/webhooks/node_modules/standardwebhooks/package.json fetches it")
	}
	type message struct {
		Secret  string            `json:"secret"`
		Payload string            `json:"payload"`
		Headers map[string]string `json:"headers"`
	}
	var got []message
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		headers := map[string]string{}
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			headers[name] = r.Header.Get(name)
		}
		got = append(got, message{Payload: string(body), Headers: headers})
	}))
	defer receiver.Close()
	d := New(Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, UserAgent: "shepherd/test", Receivers: []Receiver{{
		Name: "r", URL: receiver.URL, Secrets: func() ([]Secret, error) { return []Secret{testSecret.ForTenant("wool"), testSecret}, nil },
	}}})
	defer d.Stop()
	m := sampleDelivery()
	if result := d.try(t.Context(), m); result.Status != 200 || len(got) != 1 {
		t.Fatalf("%+v, %d requests", result, len(got))
	}
	cases := []message{}
	for _, change := range []func(*message){
		func(m *message) {}, func(m *message) { m.Secret = testSecret.ForTenant("wool").Text() }, // valid
		func(m *message) { m.Secret = testSecret.ForTenant("meat").Text() },
		func(m *message) { m.Payload += " " },
		func(m *message) { m.Headers["webhook-id"] = "msg_other" },
		func(m *message) { m.Headers["webhook-timestamp"] = "1" },
	} {
		c := message{testSecret.Text(), got[0].Payload, map[string]string{}}
		for name, value := range got[0].Headers {
			c.Headers[name] = value
		}
		change(&c)
		cases = append(cases, c)
	}
	input, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, node, "-e", `
		const { Webhook } = require("standardwebhooks");
		for (const c of JSON.parse(require("fs").readFileSync(0))) {
			try {
				console.log("valid " + new Webhook(c.secret).verify(c.payload, c.headers).type);
			} catch (e) {
				console.log("invalid " + e.name);
			}
		}`)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(modules, "node_modules"))
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	invalid := "invalid WebhookVerificationError\n"
	if want := "valid job.ended\nvalid job.ended\n" + strings.Repeat(invalid, 4); string(out) != want {
		t.Errorf("the reference library says\n%s\nwant\n%s", out, want)
	}
}
