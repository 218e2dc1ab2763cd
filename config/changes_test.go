package config

import (
	"slices"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	const before = `
data_root: /srv/jobs
registry: {url: "http://r:1", username: u, password: p}
logging: {level: info}
sheep:
  a: {type: bare, working_directory: /srv, env: {A: $A}, command: [x, y]}
`
	read := func(text, a string) *Config {
		t.Helper()
		c, err := Loader{Types: corpusTypes(), Env: lookupIn(map[string]string{"A": a, "HOME": "/root"})}.Load(write(t, text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	from := read(before, "1")
	for _, c := range []struct {
		name, old, new, env string
		keys                string
		same                bool
	}{
		{"nothing", "info}\n", "info}\n\n\n# all the same\n", "1", "", true},
		{"a value", "info", "debug", "1", "logging.level", true},
		{"a secret", "password: p", "password: q", "1", "registry.password", true},
		{"a section that goes", "registry:", "#", "1", "registry", true},
		{"several", "registry: {url: \"http://r:1\"", "drain_timeout: 1s\nregistry: {url: \"http://s:1\"", "1", "drain_timeout registry.url", true},
		{"a default that is written out", "logging:", "on_exit: stop\nlogging:", "1", "", true},
		{"the environment", "info", "info", "2", "", false},
		{"a list", "[x, y]", "[x, y, z]", "1", "", false},
		{"a key", "command: [x, y]", "port: 9001", "1", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := read(strings.Replace(before, c.old, c.new, 1), c.env)
			for _, keys := range [][]string{from.Changes(to), to.Changes(from)} {
				if got := strings.Join(keys, " "); got != c.keys || !slices.IsSorted(keys) {
					t.Errorf("changed keys are %q, want %q", got, c.keys)
				}
			}
			if got := from.Sheep[0].Same(to.Sheep[0]); got != c.same {
				t.Errorf("the sheep is the same: %t", got)
			}
		})
	}
}
