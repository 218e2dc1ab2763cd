// Runner is the scripted runner of package runtimetest as the program of an image.
// With the argument "cog" it is the HTTP server of an image built with Cog.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/iterait/shepherd/internal/cogtest"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "cog" {
		serveCog()
		return
	}
	runtimetest.RunnerMain(os.Args[1:])
}

// serveCog serves a model that converts its text to upper case.
func serveCog() {
	err := cogtest.Serve(context.Background(), cogtest.Model{
		Input:    `{"text": {"type": "string", "title": "Text"}}`,
		Required: []string{"text"},
		Output:   `{"type": "string", "title": "Output"}`,
		Predict: func(_ context.Context, input map[string]any, log func(string), _ func(any)) (any, error) {
			text := fmt.Sprint(input["text"])
			log(" 40%|####      | 4/10\nputting " + text + "\n")
			if text == "fail" {
				return nil, errors.New("ValueError: no")
			}
			return strings.ToUpper(text), nil
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
