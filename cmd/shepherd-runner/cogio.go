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

// maxDataURL is the largest file in bytes that is included in the request as a data URL.
// The model's server fetches larger ones.
const maxDataURL = 256 << 10

// callbacks serves the callbacks for one job.
type callbacks struct {
	server  *callbackServer
	name    string   // random, in the URLs
	files   *os.Root // the job's inputs
	updates chan prediction
	closed  chan struct{}
}

func (d *callbackServer) receive(inputs string) (*callbacks, error) {
	files, err := os.OpenRoot(inputs)
	if err != nil {
		return nil, err
	}
	v := &callbacks{server: d, name: rand.Text(), files: files, updates: make(chan prediction), closed: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.jobs[v.name] = v
	return v, nil
}

func (v *callbacks) close() {
	v.server.mu.Lock()
	delete(v.server.jobs, v.name)
	v.server.mu.Unlock()
	close(v.closed)
	v.files.Close()
}

func (v *callbacks) webhook() string { return v.server.base + "/" + v.name + "/webhook" }

// url returns the URL of a file of the job's inputs for the model's server.
func (v *callbacks) url(name string) (string, error) {
	info, err := v.files.Stat(name)
	if err != nil {
		return "", err
	}
	if info.Size() > maxDataURL {
		return v.server.base + "/" + v.name + "/files/" + (&url.URL{Path: filepath.ToSlash(name)}).EscapedPath(), nil
	}
	data, err := v.files.ReadFile(name)
	if err != nil {
		return "", err
	}
	kind := cmp.Or(mime.TypeByExtension(filepath.Ext(name)), http.DetectContentType(data))
	return "data:" + strings.ReplaceAll(kind, " ", "") + ";base64," + base64.StdEncoding.EncodeToString(data), nil
}

// has reports whether a file of the job's inputs has that name.
func (v *callbacks) has(name string) bool {
	if name == "" || !filepath.IsLocal(name) {
		return false
	}
	info, err := v.files.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// names lists the input files except the default one.
func (v *callbacks) names() ([]string, error) {
	var names []string
	err := fs.WalkDir(v.files.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path != job.DefaultInput {
			names = append(names, path)
		}
		return err
	})
	return names, err
}

// cogSchema is the schema of inputs and outputs in the server's OpenAPI document.
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

// isFile reports whether values are files, which are passed as URLs.
func (t cogType) isFile() bool {
	return t.Type == "string" && t.Format == "uri" || slices.ContainsFunc(t.AnyOf, cogType.isFile)
}

// isFiles reports whether values are lists of files.
func (t cogType) isFiles() bool {
	return t.Type == "array" && t.Items != nil && t.Items.isFile() || slices.ContainsFunc(t.AnyOf, cogType.isFiles)
}

// isText reports whether values are text, numbers and lists of them, which contain no files.
func (t cogType) isText() bool {
	switch t.Type {
	case "string":
		return t.Format != "uri"
	case "integer", "number", "boolean", "null":
		return true
	case "array":
		return t.Items != nil && t.Items.isText()
	}
	return len(t.AnyOf) > 0 && !slices.ContainsFunc(t.AnyOf, func(o cogType) bool { return !o.isText() })
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

// input converts a job's input files to a prediction's input. The default file is the JSON
// object of the model's inputs, or the value of the only required input. Values that name
// other files are replaced by these files, and a file with the name of an input (with any
// extension) is its value.
func (s *cogSchema) input(j runner.Job, v *callbacks) (map[string]any, error) {
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

// payload parses the default input file.
func (s *cogSchema) payload(text []byte, v *callbacks) (map[string]any, error) {
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if decoder.Decode(&object) == nil && object != nil {
		if inner, ok := object["input"].(map[string]any); ok && s.inputs["input"].Type == "" {
			return inner, nil // a request in the form of Cog's HTTP API
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

// only returns the name of the input for a payload that is not a JSON object.
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

// value returns a file's content as the value of an input of type t.
func (s *cogSchema) value(t cogType, name string, v *callbacks) (any, error) {
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
		return string(text), nil // the server's error says what it expects
	}
	return value, nil
}

// output writes a prediction's output: text and a single file as they are, anything else
// as JSON, in which files are replaced by their names and written as further outputs.
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
		return os.WriteFile(j.Output(), []byte(text.String()), 0o644)
	}
	onlyText := s.result.isText() // then "data: a, b" is no file
	if text, ok := value.(string); ok {
		if data, _, ok := parseDataURL(text); ok && !onlyText {
			return os.WriteFile(j.Output(), data, 0o644)
		}
		return os.WriteFile(j.Output(), []byte(text), 0o644)
	}
	if !onlyText {
		w := fileWriter{dir: j.OutputDir, taken: map[string]bool{job.DefaultOutput: true}}
		var err error
		if value, err = w.extract(value, job.DefaultOutput); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	return os.WriteFile(j.Output(), text.Bytes(), 0o644)
}

// fileWriter writes the files in an output to a directory.
type fileWriter struct {
	dir   string
	taken map[string]bool // names in use
}

// extract writes the files in a value, with names derived from their positions in it,
// and replaces them by their names.
func (w fileWriter) extract(value any, name string) (any, error) {
	var err error
	switch x := value.(type) {
	case string:
		data, extension, ok := parseDataURL(x)
		if !ok {
			return x, nil
		}
		name = w.free(name, extension)
		return name, os.WriteFile(filepath.Join(w.dir, name), data, 0o644)
	case []any:
		for i := range x {
			if x[i], err = w.extract(x[i], name+"-"+strconv.Itoa(i)); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(x)) {
			if x[key], err = w.extract(x[key], name+"-"+safeName(key)); err != nil {
				return nil, err
			}
		}
	}
	return value, nil
}

// free returns a file name that is not taken yet, with a number appended if necessary, and
// takes it.
func (w fileWriter) free(name, extension string) string {
	const maxName = 200 // bytes; most file systems allow 255
	name = name[:min(len(name), maxName)]
	for n, wanted := 2, name+extension; ; n++ {
		if !w.taken[wanted] {
			w.taken[wanted] = true
			return wanted
		}
		wanted = fmt.Sprintf("%s-%d%s", name, n, extension)
	}
}

// safeName replaces the characters of a key that are not allowed in file names.
func safeName(key string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, key)
}

// extensions are the file name extensions of common media types; package mime has several
// for some of them.
var extensions = map[string]string{
	"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif", "video/mp4": ".mp4",
	"audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mpeg": ".mp3", "text/plain": ".txt", "application/json": ".json", "application/zip": ".zip",
}

// parseDataURL parses data:[TYPE][;…][;base64],DATA.
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
