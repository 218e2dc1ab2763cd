package config

import (
	"encoding"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/iterait/shepherd/gpu"
)

// schema is a JSON Schema, draft 2020-12, as far as it is used.
type schema map[string]any

// Schema is a JSON Schema of the configuration file, for editors. types gives, for
// each sheep type, a pointer to the struct that its sections are decoded into.
// reference is the text of docs/configuration.md, whose tables describe the keys.
func Schema(types map[string]any, reference string) ([]byte, error) {
	s := schemaWriter{keys: descriptions(reference)}
	root := s.structure(reflect.TypeFor[Config](), "", nil)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "shepherd.yml"
	root["required"] = []string{"data_root", "sheep"}
	root["properties"].(schema)["sheep"] = schema{
		"type": "object", "propertyNames": schema{"pattern": sheepName.String()}, "additionalProperties": s.sheep(types),
		"description": "The sheep, by their names.",
	}
	return json.MarshalIndent(root, "", "  ")
}

type schemaWriter struct {
	keys map[string]string // descriptions, by key
}

// sheep is the schema of a sheep's section: that of its type.
func (s schemaWriter) sheep(types map[string]any) schema {
	var names []string
	for name := range types {
		names = append(names, name)
	}
	slices.Sort(names)
	var conditions []schema
	for _, name := range names {
		// The reference describes a type's keys under its first name.
		section := s.structure(reflect.TypeOf(types[name]).Elem(), s.sectionOf(name)+".", func(properties schema) {
			for key, value := range s.structure(reflect.TypeFor[daemonKeys](), "sheep.NAME.", nil)["properties"].(schema) {
				properties[key] = value
			}
			for _, key := range []string{"type", "port", "devices"} {
				if text, ok := s.keys["sheep.NAME."+key]; ok && properties[key] != nil {
					properties[key].(schema)["description"] = text
				}
			}
		})
		section["properties"].(schema)["type"].(schema)["const"] = name
		conditions = append(conditions, schema{
			"if":   schema{"properties": schema{"type": schema{"const": name}}, "required": []string{"type"}},
			"then": section,
		})
	}
	return schema{
		"type": "object", "required": []string{"type"},
		"properties": schema{"type": schema{"enum": names, "description": s.keys["sheep.NAME.type"]}},
		"allOf":      conditions,
	}
}

// sectionOf is the section of the reference that describes a sheep type.
func (s schemaWriter) sectionOf(name string) string {
	for key := range s.keys {
		if strings.HasPrefix(key, "type: "+name+".") {
			return "type: " + name
		}
	}
	return "type: docker"
}

// structure returns the schema of a struct; path is the prefix of its keys in the
// reference.
func (s schemaWriter) structure(t reflect.Type, path string, more func(properties schema)) schema {
	properties := schema{}
	fields := map[string]reflect.Value{}
	structFields(reflect.New(t).Elem(), fields)
	for key, field := range fields {
		if field.Type() == nodeType {
			continue
		}
		value := s.value(field.Type(), path+key)
		text, ok := s.keys[path+key]
		if at := strings.LastIndex("."+path, ".limits."); !ok && at >= 0 { // those of a sheep are described with those for all jobs
			text, ok = s.keys[(path + key)[at:]]
		}
		if ok {
			value["description"] = text
		}
		properties[key] = value
	}
	if more != nil {
		more(properties)
	}
	return schema{
		"type": []string{"object", "null"}, "properties": properties, "additionalProperties": false,
		"patternProperties": schema{"^x-": schema{}},
	}
}

// orReference allows a reference to the environment instead of a scalar.
func orReference(s schema) schema {
	return schema{"anyOf": []schema{s, {"type": "string", "pattern": scalarPattern}, {"type": "null"}}}
}

func (s schemaWriter) value(t reflect.Type, path string) schema {
	switch t {
	case bytesType:
		return orReference(schema{"anyOf": []schema{{"type": "integer", "minimum": 0}, {"type": "string", "pattern": sizePattern}}})
	case durationType:
		return orReference(schema{"type": []string{"string", "integer"}, "pattern": `^-?([0-9.]+(d|h|m|s|ms|us|µs|ns))+$|^0$`})
	case secretType:
		return schema{"type": []string{"string", "integer", "null"}}
	case reflect.TypeFor[gpu.Devices]():
		return schema{"anyOf": []schema{
			{"const": "all"}, {"type": "null"}, {"type": "array", "items": schema{"type": []string{"string", "integer"}}},
			{"type": "object", "properties": schema{"count": schema{"anyOf": []schema{{"const": "all"}, orReference(schema{"type": "integer", "minimum": 1})}}}, "additionalProperties": false},
		}}
	}
	if t.Kind() == reflect.Pointer {
		return s.value(t.Elem(), path)
	}
	if p := reflect.PointerTo(t); p.Implements(reflect.TypeFor[yamlUnmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return schema{} // it has its own forms
	}
	switch t.Kind() {
	case reflect.Struct:
		return s.structure(t, path+".", nil)
	case reflect.Slice:
		items := s.value(t.Elem(), path+"[]")
		return schema{"type": []string{"array", "null"}, "items": items}
	case reflect.Map:
		return schema{"type": []string{"object", "null"}, "additionalProperties": s.value(t.Elem(), path)}
	case reflect.Bool:
		return orReference(schema{"type": "boolean"})
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return orReference(schema{"type": "integer"})
	case reflect.Float32, reflect.Float64:
		return orReference(schema{"type": "number"})
	case reflect.String:
		return schema{"type": []string{"string", "integer", "null"}}
	}
	return schema{}
}

// scalarPattern matches a number or boolean in quotes, or a reference to the environment.
const scalarPattern = `\$|^-?[0-9]+(\.[0-9]+)?$|^(?:[Tt]rue|[Ff]alse)$`

// sizePattern matches what size.Parse parses.
const sizePattern = `^[0-9]+(\.[0-9]+)? *(([KMGT]i?)?B?|kB|[kmgt]b?|b)$`

// row is a row of one of the reference's tables of keys.
var (
	row     = regexp.MustCompile("^\\| `([a-zA-Z_.\\[\\]]+)` \\| [^|]+ \\| [^|]+ \\| (.+) \\|$")
	heading = regexp.MustCompile("^#+ `(type: [a-z]+)`")
	markup  = strings.NewReplacer("**", "", "`", "")
	link    = regexp.MustCompile(`\[([^\]]+)\]\([^)]+\)`)
)

// descriptions are the meanings of the keys: "api.port", "sheep.NAME.devices" or, for
// those of a sheep type, "type: bare.command".
func descriptions(reference string) map[string]string {
	keys := map[string]string{}
	section := ""
	for line := range strings.Lines(reference) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "#") {
			section = ""
			if m := heading.FindStringSubmatch(line); m != nil {
				section = m[1] + "."
			}
		}
		if m := row.FindStringSubmatch(line); m != nil {
			keys[section+m[1]] = markup.Replace(link.ReplaceAllString(m[2], "$1"))
		}
	}
	return keys
}
