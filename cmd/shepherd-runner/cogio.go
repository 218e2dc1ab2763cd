package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
)

// maxDataURL is the largest file that is given to the model in the request
// itself, in bytes; others it fetches.
const maxDataURL = 256 << 10

// visit is one job at the desk.
type visit struct {
	desk    *desk
	name    string
	files   *os.Root // the job's inputs
	updates chan prediction
	left    chan struct{}
}

func (d *desk) receive(inputs string) (*visit, error) {
	files, err := os.OpenRoot(inputs)
	if err != nil {
		return nil, err
	}
	v := &visit{desk: d, name: rand.Text(), files: files, updates: make(chan prediction), left: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.visitors[v.name] = v
	return v, nil
}

func (v *visit) leave() {
	v.desk.mu.Lock()
	delete(v.desk.visitors, v.name)
	v.desk.mu.Unlock()
	close(v.left)
	v.files.Close()
}

func (v *visit) webhook() string { return v.desk.base + "/" + v.name + "/webhook" }

// url is a URL by which the model gets a file of the job's inputs.
func (v *visit) url(name string) (string, error) {
	info, err := v.files.Stat(name)
	if err != nil {
		return "", err
	}
	if info.Size() > maxDataURL {
		return v.desk.base + "/" + v.name + "/files/" + (&url.URL{Path: filepath.ToSlash(name)}).EscapedPath(), nil
	}
	data, err := v.files.ReadFile(name)
	if err != nil {
		return "", err
	}
	kind := cmp.Or(mime.TypeByExtension(filepath.Ext(name)), http.DetectContentType(data))
	return "data:" + strings.ReplaceAll(kind, " ", "") + ";base64," + base64.StdEncoding.EncodeToString(data), nil
}

// has reports whether a file of the job's inputs has that name.
func (v *visit) has(name string) bool {
	if name == "" || !filepath.IsLocal(name) {
		return false
	}
	info, err := v.files.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// names are the input files, but for the default one.
func (v *visit) names() ([]string, error) {
	var names []string
	err := fs.WalkDir(v.files.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path != job.DefaultInput {
			names = append(names, path)
		}
		return err
	})
	return names, err
}

// cogSchema is what the server's OpenAPI document says of inputs and outputs.
type cogSchema struct {
	inputs   map[string]cogType
	required []string
	result   cogType
}

// cogType is a JSON schema, as far as Cog uses them.
type cogType struct {
	Type    string    `json:"type"`
	Format  string    `json:"format"`
	Items   *cogType  `json:"items"`
	AnyOf   []cogType `json:"anyOf"`
	AllOf   []cogType `json:"allOf"`
	Display string    `json:"x-cog-array-display"`
}

// isFile reports whether values are files, which go as URLs.
func (t cogType) isFile() bool {
	return t.Type == "string" && t.Format == "uri" || slices.ContainsFunc(t.AnyOf, cogType.isFile)
}

// isFiles reports whether values are lists of files.
func (t cogType) isFiles() bool {
	return t.Type == "array" && t.Items != nil && t.Items.isFile() || slices.ContainsFunc(t.AnyOf, cogType.isFiles)
}

func (c *cog) readSchema(ctx context.Context) error {
	var doc struct {
		Components struct {
			Schemas struct {
				Input struct {
					Properties map[string]cogType `json:"properties"`
					Required   []string           `json:"required"`
				} `json:"Input"`
				Output cogType `json:"Output"`
			} `json:"schemas"`
		} `json:"components"`
	}
	status, err := c.call(ctx, http.MethodGet, "/openapi.json", nil, nil, &doc)
	if err != nil {
		return fmt.Errorf("read the model's inputs from /openapi.json: %w", err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("read the model's inputs from /openapi.json: status %d", status)
	}
	s := doc.Components.Schemas
	c.schema = cogSchema{inputs: s.Input.Properties, required: s.Input.Required, result: s.Output}
	return nil
}

// input makes a prediction's input of a job's files: the default one is the JSON
// object of the model's inputs, or the value of the only one it needs. Values that
// name other files stand for these, and a file that is called like an input (with
// any extension) is its value.
func (s *cogSchema) input(j runner.Job, v *visit) (map[string]any, error) {
	input := map[string]any{}
	payload, err := v.files.ReadFile(job.DefaultInput)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if input, err = s.payload(payload, v); err != nil {
			return nil, err
		}
	}
	names, err := v.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, property := range []string{name, strings.TrimSuffix(name, filepath.Ext(name))} {
			if t, ok := s.inputs[property]; ok && input[property] == nil {
				if input[property], err = s.value(t, name, v); err != nil {
					return nil, err
				}
				break
			}
		}
	}
	for property, value := range input {
		t := s.inputs[property]
		switch value := value.(type) {
		case string:
			if t.isFile() && v.has(value) {
				if input[property], err = v.url(value); err != nil {
					return nil, err
				}
			}
		case []any:
			if !t.isFiles() {
				continue
			}
			for i, item := range value {
				if name, ok := item.(string); ok && v.has(name) {
					if value[i], err = v.url(name); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	return input, nil
}

// payload reads the default input.
func (s *cogSchema) payload(text []byte, v *visit) (map[string]any, error) {
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if decoder.Decode(&object) == nil && object != nil {
		if inner, ok := object["input"].(map[string]any); ok && s.inputs["input"].Type == "" {
			return inner, nil // a request as Cog's clients send it
		}
		return object, nil
	}
	only, err := s.only()
	if err != nil {
		return nil, err
	}
	value, err := s.value(s.inputs[only], job.DefaultInput, v)
	return map[string]any{only: value}, err
}

// only is the input that a payload is meant for which is no object.
func (s *cogSchema) only() (string, error) {
	names := slices.Sorted(maps.Keys(s.inputs))
	switch {
	case len(s.required) == 1:
		return s.required[0], nil
	case len(names) == 1:
		return names[0], nil
	}
	return "", &job.Failure{
		Message: fmt.Sprintf("InvalidInput: the input is not a JSON object, and the model has several inputs: %s", strings.Join(names, ", ")),
		Type:    "InvalidInput",
	}
}

// value is a file's content as an input of this type.
func (s *cogSchema) value(t cogType, name string, v *visit) (any, error) {
	if t.isFile() {
		return v.url(name)
	}
	text, err := v.files.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if t.isFiles() {
		address, err := v.url(name)
		return []any{address}, err
	}
	if t.Type == "string" {
		return string(text), nil
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return string(text), nil // the server says what it expects
	}
	return value, nil
}

// output writes a prediction's output: text and a single file as they are, and
// all else as JSON, with the files in it beside it, by their names.
func (s *cogSchema) output(j runner.Job, raw json.RawMessage) error {
	var value any
	if len(raw) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		if err := decoder.Decode(&value); err != nil {
			return fmt.Errorf("read the prediction's output: %w", err)
		}
	}
	if list, ok := value.([]any); ok && s.result.Display == "concatenate" {
		var text strings.Builder
		for _, item := range list {
			fmt.Fprint(&text, item)
		}
		value = text.String()
	}
	if text, ok := value.(string); ok {
		if data, _, ok := parseDataURL(text); ok {
			return os.WriteFile(j.Output(), data, 0o644)
		}
		return os.WriteFile(j.Output(), []byte(text), 0o644)
	}
	p := placer{dir: j.OutputDir, taken: map[string]bool{job.DefaultOutput: true}}
	value, err := p.place(value, job.DefaultOutput)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	return os.WriteFile(j.Output(), text.Bytes(), 0o644)
}

// placer writes the files that are in an output beside it.
type placer struct {
	dir   string
	taken map[string]bool // names
}

// place writes the files in a value, which are called as their places in it, and
// replaces them by their names.
func (p placer) place(value any, name string) (any, error) {
	var err error
	switch x := value.(type) {
	case string:
		data, extension, ok := parseDataURL(x)
		if !ok {
			return x, nil
		}
		name = p.free(name, extension)
		return name, os.WriteFile(filepath.Join(p.dir, name), data, 0o644)
	case []any:
		for i := range x {
			if x[i], err = p.place(x[i], name+"-"+strconv.Itoa(i)); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(x)) {
			if x[key], err = p.place(x[key], name+"-"+safeName(key)); err != nil {
				return nil, err
			}
		}
	}
	return value, nil
}

// free is a file's name that no other of the output has: places that differ in what no
// name has are numbered.
func (p placer) free(name, extension string) string {
	const longest = 200 // bytes; file systems take 255
	name = name[:min(len(name), longest)]
	for n, wanted := 2, name+extension; ; n++ {
		if !p.taken[wanted] {
			p.taken[wanted] = true
			return wanted
		}
		wanted = fmt.Sprintf("%s-%d%s", name, n, extension)
	}
}

// safeName is a key as a part of a file's name.
func safeName(key string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, key)
}

// extensions are those of common results; package mime has several for some.
var extensions = map[string]string{
	"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif", "video/mp4": ".mp4",
	"audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mpeg": ".mp3", "text/plain": ".txt", "application/json": ".json", "application/zip": ".zip",
}

// parseDataURL reads data:[TYPE][;…][;base64],DATA.
func parseDataURL(s string) (data []byte, extension string, ok bool) {
	rest, ok := strings.CutPrefix(s, "data:")
	head, body, comma := strings.Cut(rest, ",")
	if !ok || !comma {
		return nil, "", false
	}
	head, is64 := strings.CutSuffix(head, ";base64")
	if is64 {
		var err error
		if data, err = base64.StdEncoding.DecodeString(body); err != nil {
			if data, err = base64.RawStdEncoding.DecodeString(body); err != nil {
				return nil, "", false
			}
		}
	} else {
		text, err := url.PathUnescape(body)
		if err != nil {
			return nil, "", false
		}
		data = []byte(text)
	}
	kind, _, _ := strings.Cut(head, ";")
	extension = extensions[strings.TrimSpace(kind)]
	if extension == "" && kind != "" {
		if known, err := mime.ExtensionsByType(kind); err == nil && len(known) > 0 {
			extension = known[0]
		}
	}
	return data, extension, true
}
