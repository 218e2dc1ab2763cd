package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

// keysOf collects every key of a struct, dotted, with its value in YAML.
func keysOf(v reflect.Value, path string, keys map[string]string) {
	fields := map[string]reflect.Value{}
	structFields(v, fields)
	for key, field := range fields {
		key = below(path, key)
		if field.Type() == nodeType {
			continue // the sheep have a section of their own
		}
		if field.Kind() == reflect.Pointer {
			switch {
			case !field.IsNil():
				field = field.Elem()
			case field.Type().Elem().Kind() == reflect.Struct:
				field = reflect.New(field.Type().Elem()).Elem()
			default:
				keys[key] = "" // no default
				continue
			}
		}
		switch value := field.Interface().(type) {
		case Secret:
			keys[key] = ""
		case time.Duration:
			keys[key] = job.FormatDuration(value)
		default:
			if field.Kind() == reflect.Struct {
				keysOf(field, key, keys)
				continue
			}
			if field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct {
				keysOf(reflect.New(field.Type().Elem()).Elem(), key+"[]", keys)
				continue
			}
			keys[key] = fmt.Sprint(value)
		}
	}
}

// The reference has every key with its default in the code, and no other key.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([a-z_.\\[\\]]+\\.[a-z_]+|data_root|state_dir|min_free|node|drain_timeout|on_exit)` \\| [^|]+ \\| ([^|]+) \\| [^|]+ \\|$")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}

	m := machine{env: lookupIn(nil), root: true, hostname: "HOST", directory: "/"}
	doc := document{Config: defaults(m)}
	doc.DataRoot = "/DATA"
	doc.derive(m)
	keys := map[string]string{}
	keysOf(reflect.ValueOf(&doc).Elem(), "", keys)

	inWords := map[string]string{ // defaults that depend on the machine
		"data_root":            "required",
		"state_dir":            "see below",
		"node":                 "the host name",
		"registry.url":         "required",
		"storage.path":         "`storage` in `state_dir`",
		"storage.domain":       "none",
		"storage.cors_origins": "none",
		"ledger.path":          "`ledger.db` in `state_dir`",
		"ledger.lease":         "`12s`",
		"api.socket":           "`api.sock` in `state_dir`",
		"registry.hosts_dir":   "`/etc/containerd/certs.d`, `/etc/docker/certs.d`",

		"gpu.xids":                "none",
		"gpu.cdi_dirs":            "`/etc/cdi`, `/var/run/cdi`",
		"gpu.driver_capabilities": "`compute`, `utility`",

		"api.tokens[].name":                  "required",
		"api.tokens[].scopes":                "required",
		"api.cors_origins":                   "`*`",
		"api.hosts":                          "none",
		"api.trusted_proxies.addresses":      "required",
		"api.trusted_proxies.user_header":    "required",
		"api.trusted_proxies.scopes":         "none",
		"api.trusted_proxies.users[].name":   "required",
		"api.trusted_proxies.users[].scopes": "required",
		"api.tls.cert_file":                  "required",
		"api.tls.key_file":                   "required",
		"api.tls.clients[].name":             "required",
		"api.tls.clients[].scopes":           "required",

		"webhooks.receivers[].name":        "required",
		"webhooks.receivers[].url":         "required",
		"webhooks.receivers[].secret_file": "required",

		"models.allow":                "none",
		"models.limits[].model":       "required",
		"models.contracts[].model":    "required",
		"models.nodes[].model":        "required",
		"models.nodes[].labels":       "required",
		"models.contracts[].command":  "none",
		"models.contracts[].args":     "none",
		"storage.keep.models[].model": "required",

		"scheduling.models[].model":       "required",
		"scheduling.models[].max_running": "required",
		"scheduling.tenants[].tenant":     "required",
		"scheduling.tenants[].weight":     "`1`",

		"containerd.allowed_mounts":  "none",
		"containerd.cni_plugin_dirs": "`/opt/cni/bin`, `/usr/lib/cni`, `/usr/libexec/cni`",
	}
	for key, value := range keys {
		want, ok := inWords[key]
		switch {
		case ok:
		case value == "":
			want = "none"
		default:
			want = "`" + value + "`"
		}
		if got, ok := documented[key]; !ok {
			t.Errorf("%s is missing from docs/configuration.md", key)
		} else if got != want {
			t.Errorf("%s: docs/configuration.md says its default is %s, it is %s", key, got, want)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("docs/configuration.md describes %s, which there is not", key)
	}
}

// The complete examples of the reference are valid configurations.
func TestReferenceExamples(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	env := lookupIn(map[string]string{"REGISTRY_PASSWORD": "x", "STORAGE_ACCESS_KEY": "x", "STORAGE_SECRET_KEY": "x"})
	var complete int
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		example := m[1]
		if !strings.Contains(example, "data_root") {
			example = "data_root: /data\n" + example
		}
		c, err := Loader{Types: corpusTypes(), Env: env}.Load(write(t, example))
		if err != nil {
			t.Errorf("%v\nin\n%s", err, example)
			continue
		}
		if complete++; len(c.Sheep) == 0 {
			t.Errorf("no sheep in\n%s", example)
		}
	}
	if complete != 3 {
		t.Errorf("%d examples were found, expected 3", complete)
	}
}
