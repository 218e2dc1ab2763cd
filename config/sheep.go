package config

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
)

// Sheep is one sheep's section.
type Sheep struct {
	Name string
	Type string
	// Port is the port in the section, 0 when it leaves the choice
	// open.
	Port int
	// Devices are the GPUs that the section requests; Shared allows other sheep
	// that share to have the same.
	Devices gpu.Devices
	Shared  bool
	// GPUMemory is how much memory the sheep may use on each of its GPUs; 0 is all.
	GPUMemory size.Bytes
	// IdleTimeout is how long the sheep keeps a model without a job; 0 means until another
	// sheep needs the memory.
	IdleTimeout time.Duration
	// Preload is the model that the sheep loads without waiting for a job; zero for
	// none.
	Preload job.Model
	// Limits are defaults for the jobs that it runs, or that are addressed to it.
	Limits Limits

	path    string // in the file: "sheep.NAME"
	file    string
	section *node // a mapping, with the position of its name
}

// Decode decodes the section strictly into a pointer to a struct with yaml tags for every
// key of the sheep's type, including type and port. Keys that the section leaves out stay
// unchanged. Besides Go's own types the struct may contain time.Duration, this package's
// Secret, size.Bytes, and types with UnmarshalText or UnmarshalYAML(decode func(any) error)
// error. Keys for the daemon itself, such as gpu_memory and limits, are not passed to the
// type. The error is of type Problems.
func (s Sheep) Decode(into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %s: expected a pointer to a struct to decode into, got a %T", s.path, into))
	}
	inline := reflect.StructTag(`yaml:",inline"`)
	both := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Daemon", Type: reflect.TypeFor[daemonKeys](), Tag: inline},
		{Name: "Type", Type: v.Elem().Type(), Tag: inline},
	})).Elem()
	both.Field(1).Set(v.Elem())
	ps := decode(s.settings(), s.path, both)
	v.Elem().Set(both.Field(1))
	if len(ps) > 0 {
		return ps.inOrder(s.file)
	}
	return nil
}

// daemonKeys are the keys of a sheep that are not passed to its type.
type daemonKeys struct {
	Shared      bool          `yaml:"shared"`
	GPUMemory   size.Bytes    `yaml:"gpu_memory"`
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	Preload     string        `yaml:"preload"`
	Limits      Limits        `yaml:"limits"`
}

// settings returns the section or, for a Sheep that was not read from a file, one built from
// its fields.
func (s Sheep) settings() *node {
	if s.section != nil {
		return s.section
	}
	n := &node{kind: mapping, line: 1, column: 1}
	n.entries = append(n.entries, entry{key: "type", value: &node{kind: text, text: s.Type}})
	if s.Port != 0 {
		n.entries = append(n.entries, entry{key: "port", value: &node{kind: number, text: strconv.Itoa(s.Port)}})
	}
	return n
}

// Dir is the sheep's directory, which holds the files of the jobs it runs.
func (s Sheep) Dir(dataRoot string) string { return filepath.Join(dataRoot, s.Name) }

// A sheep's name becomes a directory, a container id and a label.
var sheepName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// sheep decodes the sections of all sheep.
func (ch *checker) sheep(file string, flock *node) {
	if flock == nil {
		ch.missing("sheep", "a mapping from the names of sheep to their settings")
		return
	}
	if flock.kind != mapping {
		if flock.kind != broken {
			ch.wrong(flock, "sheep", "expected a mapping from the names of sheep to their settings, found %s", flock.kind)
		}
		return
	}
	for _, e := range flock.entries {
		section := *e.value
		section.file, section.line, section.column = e.file, e.line, e.column // missing keys are reported at the sheep's name
		switch section.kind {
		case null:
			section.kind = mapping
		case mapping:
		case broken:
			continue
		default:
			ch.wrong(e.value, "sheep."+e.key, "expected a mapping, found %s", section.kind)
			continue
		}
		s := Sheep{Name: e.key, path: "sheep." + e.key, file: file, section: &section}
		ch.common(&s, "type", &s.Type)
		ch.common(&s, "port", &s.Port)
		ch.common(&s, "devices", &s.Devices)
		ch.common(&s, "shared", &s.Shared)
		ch.common(&s, "gpu_memory", &s.GPUMemory)
		ch.common(&s, "idle_timeout", &s.IdleTimeout)
		ch.preload(&s, section.get("preload"))
		ch.common(&s, "limits", &s.Limits)
		ch.limits(section.get("limits"), s.path+".limits", s.Limits)
		if n := section.get("gpu_memory"); s.GPUMemory != 0 && s.Devices.Empty() {
			ch.wrong(n, s.path+".gpu_memory", "the sheep has no devices")
		}
		if n := section.get("idle_timeout"); s.IdleTimeout < 0 {
			ch.wrong(n, s.path+".idle_timeout", "expected a duration, 0s or longer, found %s", n.shown())
		}
		if n := section.get("port"); !validPort(s.Port) {
			ch.wrong(n, s.path+".port", "expected a port from 1 to 65535, or 0 for a free one, found %s", n.shown())
		}
		ch.Sheep = append(ch.Sheep, s)
	}
	slices.SortFunc(ch.Sheep, func(a, b Sheep) int { return cmp.Compare(a.Name, b.Name) })
}

// preload decodes the model that a sheep preloads.
func (ch *checker) preload(s *Sheep, n *node) {
	var text string
	ch.common(s, "preload", &text)
	if text == "" {
		return
	}
	s.Preload = job.ParseModel(text)
	if err := s.Preload.Validate(); err != nil {
		ch.wrong(n, s.path+".preload", "expected NAME:VERSION of a model: %v", err)
	}
}

// common decodes a key that all types of sheep have.
func (ch *checker) common(s *Sheep, key string, into any) {
	if n := s.section.get(key); n != nil {
		ch.problems = append(ch.problems, decode(n, s.path+"."+key, reflect.ValueOf(into).Elem())...)
	}
}

// types checks every sheep with its type.
func (ch *checker) types(types map[string]CheckSheep) {
	known := slices.Sorted(maps.Keys(types))
	for _, s := range ch.Sheep {
		path := s.path + ".type"
		if !sheepName.MatchString(s.Name) {
			ch.wrong(s.section, s.path, "not a name for a sheep; expected 1 to 63 of A-Z, a-z, 0-9, _, . and -, a letter or digit first")
		}
		check, ok := types[s.Type]
		n := s.section.get("type")
		switch {
		case ok:
			// Skip problems that have been reported already.
			for _, p := range fromDriver(check(ch.Config, s), s.section, s.path) {
				if p.File == s.file {
					p.File = "" // the main file's name is added at the end
				}
				if p.Path == s.path || !ch.problems.cover(&node{file: p.File, line: p.Line, column: p.Column}, p.Path) {
					ch.problems = append(ch.problems, p)
				}
			}
		case n == nil:
			ch.wrong(s.section, path, requiredKey+"; %s", suggest("", known))
		case !ch.problems.cover(n, path) && n.referred:
			ch.wrong(n, path, "%s is not a type of sheep; %s", n.shown(), suggest("", known))
		case !ch.problems.cover(n, path):
			ch.wrong(n, path, "%s is not a type of sheep; %s", n.shown(), suggest(s.Type, known))
		}
	}
}
