package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// yamlUnmarshaler is implemented by types that are written in more than one form. Unlike
// the YAML library's interface it needs no import.
type yamlUnmarshaler interface {
	UnmarshalYAML(decode func(any) error) error
}

var (
	secretType   = reflect.TypeFor[Secret]()
	bytesType    = reflect.TypeFor[size.Bytes]()
	durationType = reflect.TypeFor[time.Duration]()
	nodeType     = reflect.TypeFor[*node]()
)

// decode decodes n into v and returns all problems, unknown keys included. Keys that are not
// in the file, or have no value, are unchanged in v.
func decode(n *node, path string, v reflect.Value) Problems {
	if n.kind == broken || n.kind == null && v.Kind() == reflect.Pointer && v.Type() != nodeType {
		return nil
	}
	if v.CanAddr() {
		switch u := v.Addr().Interface().(type) {
		case yamlUnmarshaler:
			return decodeItself(n, path, u)
		case encoding.TextUnmarshaler:
			return decodeText(n, path, u)
		}
	}
	switch v.Type() {
	case nodeType: // decoded later
		v.Set(reflect.ValueOf(n))
		return nil
	case secretType:
		if n.kind != text && n.kind != number {
			return Problems{at(n, path, "expected a string, found %s%s", n.kind, quoteHint(n))}
		}
		v.Set(reflect.ValueOf(NewSecret(n.text)))
		return nil
	case bytesType:
		b, err := size.Parse(n.text)
		if !n.isScalar() || err != nil {
			return mismatch(n, path, "a size such as 512MiB or 2GiB, or a number of bytes")
		}
		v.Set(reflect.ValueOf(b))
		return nil
	case durationType:
		d, err := job.ParseDuration(n.text)
		if !n.isScalar() || err != nil {
			return mismatch(n, path, "a duration such as 30s, 5m, 12h or 7d")
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return decode(n, path, v.Elem())
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf(n.plain()))
			return nil
		}
	case reflect.Struct:
		return decodeStruct(n, path, v)
	case reflect.Map:
		return decodeMap(n, path, v)
	case reflect.Slice:
		return decodeList(n, path, v)
	default:
		return decodeScalar(n, path, v)
	}
	panic(fmt.Sprintf("config: %s: cannot decode into a %s", path, v.Type()))
}

func (n *node) isScalar() bool {
	return n.kind == text || n.kind == number || n.kind == decimal || n.kind == boolean
}

// shown returns the value for a message: shortened, and without text from the environment.
func (n *node) shown() string {
	switch {
	case n.referred:
		return "the value of " + strconv.Quote(clip(n.written))
	case n.kind == text:
		return strconv.Quote(clip(n.text))
	case n.isScalar():
		return clip(n.text)
	}
	return n.kind.String()
}

func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:59]) + "…"
	}
	return s
}

func mismatch(n *node, path, expected string) Problems {
	return Problems{at(n, path, "expected %s, found %s", expected, n.shown())}
}

func quoteHint(n *node) string {
	if n.kind == boolean || n.kind == decimal {
		return "; put it in quotes"
	}
	return ""
}

func decodeScalar(n *node, path string, v reflect.Value) Problems {
	switch v.Kind() {
	case reflect.String:
		if n.kind != text && n.kind != number {
			return Problems{at(n, path, "expected a string, found %s%s", n.shown(), quoteHint(n))}
		}
		v.SetString(n.text)
	case reflect.Bool:
		switch {
		case n.isScalar() && (strings.EqualFold(n.text, "true") || n.text == "1"): // 1 and 0 as for the Python original
			v.SetBool(true)
		case n.isScalar() && (strings.EqualFold(n.text, "false") || n.text == "0"):
			v.SetBool(false)
		default:
			return mismatch(n, path, "true or false")
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.text, 10, v.Type().Bits())
		if !n.isScalar() || err != nil {
			return mismatch(n, path, "a whole number")
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(n.text, 10, v.Type().Bits())
		if !n.isScalar() || err != nil {
			return mismatch(n, path, "a whole number, 0 or more")
		}
		v.SetUint(u)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(n.text, v.Type().Bits())
		if !n.isScalar() || err != nil {
			return mismatch(n, path, "a number")
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("config: %s: cannot decode into a %s", path, v.Type()))
	}
	return nil
}

func decodeList(n *node, path string, v reflect.Value) Problems {
	if n.kind != list {
		return Problems{at(n, path, "expected a list, found %s", n.kind)}
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	var ps Problems
	for i, item := range n.items {
		ps = append(ps, decode(item, fmt.Sprintf("%s[%d]", path, i), out.Index(i))...)
	}
	v.Set(out)
	return ps
}

func decodeMap(n *node, path string, v reflect.Value) Problems {
	if v.Type().Key().Kind() != reflect.String {
		panic(fmt.Sprintf("config: %s: cannot decode into a %s", path, v.Type()))
	}
	if n.kind != mapping {
		return Problems{at(n, path, "expected a mapping, found %s", n.kind)}
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.entries))
	var ps Problems
	for _, e := range n.entries {
		value := reflect.New(v.Type().Elem()).Elem()
		ps = append(ps, decode(e.value, below(path, e.key), value)...)
		out.SetMapIndex(reflect.ValueOf(e.key).Convert(v.Type().Key()), value)
	}
	v.Set(out)
	return ps
}

func decodeStruct(n *node, path string, v reflect.Value) Problems {
	if n.kind != mapping {
		return Problems{at(n, path, "expected a mapping, found %s", n.kind)}
	}
	fields := map[string]reflect.Value{}
	structFields(v, fields)
	var ps Problems
	for _, e := range n.entries {
		field, ok := fields[e.key]
		switch {
		case !ok && strings.HasPrefix(e.key, "x-"): // a place for anchors, as in compose files
		case !ok:
			where := e.where()
			known := slices.Sorted(maps.Keys(fields))
			if instead, ok := elsewhere[e.key]; ok && slices.Contains(known, strings.SplitN(instead, ":", 2)[0]) {
				ps = append(ps, at(where, below(path, e.key), "unknown key; write %s", instead))
				continue
			}
			unknown := at(where, below(path, e.key), "unknown key; %s", suggest(e.key, known))
			if meant := nearest(e.key, known); meant != "" {
				unknown.meant = below(path, meant)
			}
			ps = append(ps, unknown)
		case e.value.kind != null:
			ps = append(ps, decode(e.value, below(path, e.key), field)...)
		}
	}
	return ps
}

// elsewhere maps keys of compose files to keys of this file.
var elsewhere = map[string]string{
	"gpus": "devices: all, or devices: {count: N}", "environment": "env: {NAME: value}", "volumes": "mounts: [SOURCE:TARGET:ro]",
	"mem_limit": "memory: SIZE", "pids_limit": "pids: N", "entrypoint": "command: [PROGRAM, ARGUMENT]", "network_mode": "network: WORD",
	"stop_grace_period": "grace: DURATION",
}

// structFields collects the fields by their YAML key: the name in the tag, or the field's
// name in lower case. Fields of embedded and inline structs are included.
func structFields(v reflect.Value, fields map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "-" || !f.IsExported() {
			continue
		}
		if f.Type.Kind() == reflect.Struct && (option == "inline" || f.Anonymous && key == "") {
			structFields(v.Field(i), fields)
			continue
		}
		if key == "" {
			key = strings.ToLower(f.Name)
		}
		fields[key] = v.Field(i)
	}
}

// decodeItself calls a type's own unmarshaler, which may try several forms. Problems of a form
// that it discarded are dropped.
func decodeItself(n *node, path string, u yamlUnmarshaler) Problems {
	err := u.UnmarshalYAML(func(into any) error { return decodeInto(n, path, into) })
	if err == nil {
		return nil
	}
	if ps := (Problems)(nil); errors.As(err, &ps) {
		return ps
	}
	return Problems{at(n, path, "%s", n.withhold(err.Error()))}
}

func decodeText(n *node, path string, u encoding.TextUnmarshaler) Problems {
	if !n.isScalar() {
		return Problems{at(n, path, "expected a string, found %s", n.kind)}
	}
	if err := u.UnmarshalText([]byte(n.text)); err != nil {
		return Problems{at(n, path, "%s", n.withhold(err.Error()))}
	}
	return nil
}

// withhold removes a value that came from the environment from a message.
func (n *node) withhold(message string) string {
	if !n.referred || n.text == "" {
		return message
	}
	unquoted := strings.Trim(strconv.Quote(n.text), `"`)
	return strings.NewReplacer(n.text, n.written, unquoted, n.written).Replace(message)
}

// decodeInto decodes into the target of a pointer.
func decodeInto(n *node, path string, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic(fmt.Sprintf("config: %s: expected a pointer to decode into, got a %T", path, into))
	}
	if ps := decode(n, path, v.Elem()); len(ps) > 0 {
		return ps
	}
	return nil
}

// plain returns the value in Go's basic types: string, int64, float64, bool, []any,
// map[string]any or nil.
func (n *node) plain() any {
	switch n.kind {
	case text:
		return n.text
	case number:
		if i, err := strconv.ParseInt(n.text, 0, 64); err == nil {
			return i
		}
		return n.text
	case decimal:
		if f, err := strconv.ParseFloat(strings.Replace(n.text, ".inf", "inf", 1), 64); err == nil {
			return f
		}
		return n.text
	case boolean:
		return strings.EqualFold(n.text, "true")
	case list:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = item.plain()
		}
		return out
	case mapping:
		out := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			out[e.key] = e.value.plain()
		}
		return out
	}
	return nil
}
