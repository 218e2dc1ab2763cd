// Command cogserver is the digits model behind Cog's HTTP API, as an image built
// with Cog serves it: its input `images` is a list of files.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/model"
	"github.com/iterait/shepherd/internal/cogtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var classifier *model.Classifier
	err := cogtest.Serve(ctx, cogtest.Model{
		Input:    `{"images": {"title": "Images", "type": "array", "items": {"type": "string", "format": "uri"}}}`,
		Required: []string{"images"},
		Output:   `{"title": "Output", "type": "array", "items": {"type": "integer"}}`,
		Setup: func(log func(string)) (err error) {
			log("loading the weights\n")
			classifier, err = model.Open("/model/config.yaml")
			return err
		},
		Predict: func(ctx context.Context, input map[string]any, log func(string), _ func(any)) (any, error) {
			images, ok := input["images"].([]any)
			if !ok {
				return nil, errors.New("images is not a list")
			}
			found := make([]any, 0, len(images))
			for i, address := range images {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				png, err := cogtest.Fetch(address)
				if err != nil {
					return nil, err
				}
				picture, err := data.DecodePNG(bytes.NewReader(png))
				if err != nil {
					return nil, err
				}
				found = append(found, classifier.Classify(picture).Digit)
				if (i+1)%20 == 0 {
					log(fmt.Sprintf("reading: %d%%|###| %d/%d\n", 100*(i+1)/len(images), i+1, len(images)))
				}
			}
			return found, nil
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "cogserver:", err)
		os.Exit(1)
	}
}
