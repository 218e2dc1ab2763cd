package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/internal/client"
)

// putInputs makes the job's bucket and puts the digits into it.
func putInputs(ctx context.Context, c *client.Client, id string, samples []digits.Sample) error {
	if err := c.MakeJob(ctx, id); err != nil {
		return err
	}
	for _, s := range samples {
		if err := c.PutInput(ctx, id, s.Name, s.PNG); err != nil {
			return err
		}
	}
	return nil
}

// predictions is the digit predicted for each input file.
func predictions(ctx context.Context, c *client.Client, id string) (map[string]int, error) {
	body, err := c.Result(ctx, id, "output")
	if err != nil {
		return nil, err
	}
	var result struct {
		Predictions []struct {
			Input string `json:"input"`
			Digit int    `json:"digit"`
		} `json:"predictions"`
	}
	if err := json.Unmarshal(body, &result); err != nil {
		return nil, fmt.Errorf("result of job %s: %w", id, err)
	}
	answers := make(map[string]int, len(result.Predictions))
	for _, p := range result.Predictions {
		answers[p.Input] = p.Digit
	}
	return answers, nil
}
