package config

import (
	"reflect"
	"slices"
)

// Changes lists the keys, dotted and sorted, whose values differ between two
// configurations, sheep excepted: Sheep.Same compares those.
func (c *Config) Changes(other *Config) []string {
	keys := changes(reflect.ValueOf(c).Elem(), reflect.ValueOf(other).Elem(), "")
	slices.Sort(keys)
	return keys
}

func changes(a, b reflect.Value, path string) []string {
	ours, theirs := map[string]reflect.Value{}, map[string]reflect.Value{}
	structFields(a, ours)
	structFields(b, theirs)
	var keys []string
	for key, v := range ours {
		key, w := below(path, key), theirs[key]
		for v.Kind() == reflect.Pointer && !v.IsNil() && !w.IsNil() {
			v, w = v.Elem(), w.Elem()
		}
		_, secret := v.Interface().(Secret)
		switch {
		case v.Kind() == reflect.Struct && !secret && v.Type() == w.Type():
			keys = append(keys, changes(v, w, key)...)
		case !reflect.DeepEqual(v.Interface(), w.Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// Same reports whether two sections are of the same sheep and have the same values, with
// references to the environment expanded.
func (s Sheep) Same(other Sheep) bool {
	return s.Name == other.Name && s.settings().same(other.settings())
}

// same compares values, regardless of their positions in the files.
func (n *node) same(other *node) bool {
	if n == nil || other == nil {
		return n == other
	}
	return n.kind == other.kind && n.text == other.text &&
		slices.EqualFunc(n.items, other.items, (*node).same) &&
		slices.EqualFunc(n.entries, other.entries, func(a, b entry) bool { return a.key == b.key && a.value.same(b.value) })
}
