package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/classify"
	"github.com/iterait/shepherd/examples/internal/client"
	"github.com/iterait/shepherd/examples/tesseract/page"
)

// submitDigits submits the hundred handwritten digits as one job.
func submitDigits(ctx context.Context, c *client.Client, id string) ([]digits.Sample, error) {
	samples, err := digits.Samples()
	if err != nil {
		return nil, err
	}
	if err := c.MakeJob(ctx, id); err != nil {
		return nil, err
	}
	for _, s := range samples {
		if err := c.PutInput(ctx, id, s.Name, s.PNG); err != nil {
			return nil, err
		}
	}
	return samples, c.StartJob(ctx, id, "digits", "v1")
}

// showDigits prints how many of the job's predictions are right.
func showDigits(ctx context.Context, c *client.Client, id string, samples []digits.Sample) error {
	body, err := c.Result(ctx, id, "output")
	if err != nil {
		return err
	}
	var result classify.Result
	if err := json.Unmarshal(body, &result); err != nil {
		return fmt.Errorf("result of job %s: %w", id, err)
	}
	labels := make(map[string]int, len(samples))
	for _, s := range samples {
		labels[s.Name] = s.Label
	}
	if len(result.Predictions) != len(samples) {
		return fmt.Errorf("job %s predicted %d digits of %d", id, len(result.Predictions), len(samples))
	}
	right := 0
	for _, p := range result.Predictions {
		if label, ok := labels[p.Input]; ok && label == p.Digit {
			right++
		}
	}
	fmt.Printf("Job %s in digits:v1: %d of %d handwritten digits right\n", id, right, len(samples))
	if right < len(samples)*9/10 {
		return fmt.Errorf("job %s: the model is far better than that, something is wrong", id)
	}
	return nil
}

// submitPage submits a page of text.
func submitPage(ctx context.Context, c *client.Client, id string) error {
	png, err := page.PNG(page.Text)
	if err != nil {
		return err
	}
	if err := c.MakeJob(ctx, id); err != nil {
		return err
	}
	if err := c.PutInput(ctx, id, "input", png); err != nil {
		return err
	}
	return c.StartJob(ctx, id, "tesseract", "v1")
}

// showPage prints the text that was read, and how many words are right.
func showPage(ctx context.Context, c *client.Client, id string) error {
	text, err := c.Result(ctx, id, "output.txt")
	if err != nil {
		return err
	}
	got, want := strings.Fields(string(text)), strings.Fields(page.Text)
	right := 0
	for i := range min(len(got), len(want)) {
		if got[i] == want[i] {
			right++
		}
	}
	fmt.Printf("Job %s in tesseract:v1: %d of %d words right\n\n", id, right, len(want))
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Println("  " + line)
		}
	}
	if right < len(want)*9/10 {
		return fmt.Errorf("job %s: Tesseract reads better than that, something is wrong", id)
	}
	return nil
}
