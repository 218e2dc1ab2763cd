// Specjson writes the contract as /spec.json serves it: JSON, in the order of
// the YAML and without what is there for the code generator only.
//
//	go run ./internal/specjson openapi.yaml spec.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: specjson openapi.yaml spec.json")
		os.Exit(2)
	}
	if err := convert(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "specjson:", err)
		os.Exit(1)
	}
}

func convert(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var contract yaml.MapSlice
	if err := yaml.UnmarshalWithOptions(text, &contract, yaml.UseOrderedMap()); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	var out bytes.Buffer
	if err := write(&out, contract); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	out.WriteByte('\n')
	return os.WriteFile(to, out.Bytes(), 0o644)
}

// write writes value as JSON and keeps the order of its maps.
func write(out *bytes.Buffer, value any) error {
	switch value := value.(type) {
	case yaml.MapSlice:
		out.WriteByte('{')
		first := true
		for _, item := range value {
			key := fmt.Sprint(item.Key)
			if strings.HasPrefix(key, "x-go-") {
				continue
			}
			if !first {
				out.WriteByte(',')
			}
			first = false
			if err := write(out, key); err != nil {
				return err
			}
			out.WriteByte(':')
			if err := write(out, item.Value); err != nil {
				return err
			}
		}
		out.WriteByte('}')
	case []any:
		out.WriteByte('[')
		for i, element := range value {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := write(out, element); err != nil {
				return err
			}
		}
		out.WriteByte(']')
	default:
		text, err := json.Marshal(value)
		if err != nil {
			return err
		}
		out.Write(text)
	}
	return nil
}
