package config

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/internal/claims"
)

// everyForm prints v with every verb and encoding.
func everyForm(t *testing.T, v any) string {
	t.Helper()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T"} {
		fmt.Fprintf(&out, verb+"\n", v)
		fmt.Fprintf(&out, verb+"\n", &v)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", v)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", v)
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, yaml.Marshal, xml.Marshal} {
		if b, err := marshal(v); err == nil {
			out.Write(b)
		}
	}
	return out.String()
}

func TestSecretsDoNotShow(t *testing.T) {
	claims.Hold(t, "L3")
	secret := NewSecret("hunter2")
	type inside struct{ secret Secret }
	for _, v := range []any{
		secret, &secret, struct{ S Secret }{secret}, inside{secret}, &inside{secret}, []Secret{secret}, []inside{{secret}},
		map[string]Secret{"s": secret}, map[string]any{"s": &secret}, fmt.Errorf("with %v", secret),
	} {
		got := everyForm(t, v)
		if strings.Contains(got, "hunter2") || strings.Contains(got, "68756e74657232") {
			t.Errorf("%T shows its secret:\n%s", v, got)
		}
	}
	if secret.Reveal() != "hunter2" || secret.IsZero() {
		t.Error("the secret is lost")
	}
	if zero := NewSecret(""); !zero.IsZero() || zero.Reveal() != "" || zero.String() != "" {
		t.Error("an empty secret is not zero")
	}
	for want, got := range map[string]string{
		stars: fmt.Sprintf("%#v", secret), `{"S":"*****"}`: mustJSON(t, struct{ S Secret }{secret}),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfigDoesNotShowSecrets(t *testing.T) {
	claims.Hold(t, "L3")
	c, ps := parseFile(t, "testdata/full.good.yml")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	if !strings.Contains(c.Registry.Password.Reveal(), "hunter2") || !strings.Contains(c.Storage.SecretKey.Reveal(), "hunter2") {
		t.Fatal("this file is meant to hold secrets")
	}
	type inside struct{ c Config }
	for _, v := range []any{c, *c, inside{*c}, struct{ C *Config }{c}, c.Storage, c.Registry, c.Sheep, c.Sheep[0], &c.Sheep[0]} {
		if got := everyForm(t, v); strings.Contains(got, "hunter2") {
			t.Errorf("%T shows a secret:\n%s", v, got)
		}
	}
	if !strings.Contains(fmt.Sprint(c), "secret_key: \""+stars) {
		t.Errorf("got %s", c)
	}
}

// The output of String is a valid configuration, except for what it hides.
func TestStringLoads(t *testing.T) {
	for _, file := range corpus(t, "testdata/*.good.yml") {
		c, ps := parseFile(t, file)
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		again, ps := Loader{Types: corpusTypes()}.parse([]source{{"again", []byte(c.String())}}, corpusMachine())
		if len(ps) > 0 {
			t.Errorf("%s: %v", file, ps)
		} else if again.String() != c.String() {
			t.Errorf("%s: got\n%s\nwant\n%s", file, again, c)
		}
	}
}

// What a password may hold that is not percent-encoded, as pgx reads it, does not show.
func TestRedactURL(t *testing.T) {
	for address, want := range map[string]string{
		"postgres://user:hunter2@host:5432/db":           "postgres://user:" + stars + "@host:5432/db",
		"postgres://user@host/db":                        "postgres://user@host/db",
		"postgres://host/db?user=a%40b":                  "postgres://host/db?user=a%40b",
		"postgres://user:12#hunter2@host/db":             stars,
		"postgres://user:12?hunter2@host/db":             stars,
		"postgres://user:12/hunter2@host/db":             stars,
		"postgres://user:x#hunter2@host/db":              stars,
		"postgres://user:x@12?hunter2@host/db":           stars,
		"postgres://user@host/db?password=hunter2&x=y":   "postgres://user@host/db?x=y",
		"postgres://user@host/db?options=%zz&password=x": stars,
	} {
		if got := redactURL(address); got != want {
			t.Errorf("%s is shown as %s, want %s", address, got, want)
		}
	}
}
