package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/classify"
	"github.com/iterait/shepherd/examples/images/build"
	"github.com/iterait/shepherd/examples/internal/client"
)

// anySheep are the sheep for images that do not use shepherd's runner interface.
const anySheep = `  shell:
    type: docker
    contract: command
    command: [/bin/sh, -c, 'echo reading; digit /model {inputs} {outputs}/output']
  python:
    type: docker
    contract: command
    args: [/app/weights.bin, '{inputs}', '{outputs}/output']
  cog:
    type: docker
`

// anyJobs are the images and their descriptions.
var anyJobs = []struct{ sheep, model, what string }{
	{"shell", "digits-shell", "a shell command"},
	{"python", "digits-python", "a Python script"},
	{"cog", "digits-cog", "a Cog server"},
}

// pushAny builds the three images and pushes them. It returns their references.
func pushAny(ctx context.Context, o options, dir, registry string) ([]string, error) {
	dir = filepath.Join(dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in := build.AnyInputs{
		Digit: filepath.Join(o.bin, "digit"), CogServer: filepath.Join(o.bin, "cogserver"), Dir: dir,
		Script: filepath.Join(o.examples, "any/python/predict.py"), Model: filepath.Join(o.examples, "digits/models/digits/v1"),
	}
	fmt.Println("Building three images that know nothing of shepherd")
	var refs []string
	for i, make := range []func(build.AnyInputs) (v1.Image, error){build.Shell, build.Python, build.Cog} {
		image, err := make(in)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", anyJobs[i].model, err)
		}
		ref, err := build.Push(ctx, image, strings.TrimPrefix(registry, "http://"), anyJobs[i].model+":v1")
		if err != nil {
			return nil, err
		}
		size, err := build.Size(image)
		if err != nil {
			return nil, err
		}
		fmt.Printf("Pushed %s, %.1f MB: %s\n", ref, float64(size)/1e6, anyJobs[i].what)
		refs = append(refs, ref)
	}
	return refs, nil
}

// runAny classifies the same digits with all three images and prints how many are right.
func runAny(ctx context.Context, d *daemon, box *sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	c, err := client.New(client.Config{API: d.api, Storage: box.storage, AccessKey: box.accessKey, SecretKey: box.secretKey})
	if err != nil {
		return err
	}
	samples, err := digits.Samples()
	if err != nil {
		return err
	}
	stamp := time.Now().UTC().Format("20060102-150405.000000")
	for _, j := range anyJobs {
		if err := submitAny(ctx, c, j.sheep+"-"+stamp, j.sheep, j.model, samples); err != nil {
			return err
		}
	}
	for _, j := range anyJobs {
		id := j.sheep + "-" + stamp
		if err := c.WaitReady(ctx, id); err != nil {
			return err
		}
		body, err := c.Result(ctx, id, "output")
		if err != nil {
			return err
		}
		found, err := readAny(j.sheep, body, samples)
		if err != nil {
			return fmt.Errorf("result of job %s: %w", id, err)
		}
		right := 0
		for i, s := range samples {
			if found[i] == s.Label {
				right++
			}
		}
		fmt.Printf("%s:v1, %s: %d of %d handwritten digits right\n", j.model, j.what, right, len(samples))
		if right < len(samples)*9/10 {
			return fmt.Errorf("job %s: the model is far better than that, something is wrong", id)
		}
	}
	return nil
}

// submitAny submits the digits as one job of a sheep. For Cog's model the payload names the
// input, a list of files.
func submitAny(ctx context.Context, c *client.Client, id, sheep, model string, samples []digits.Sample) error {
	if err := c.MakeJob(ctx, id); err != nil {
		return err
	}
	names := make([]string, len(samples))
	for i, s := range samples {
		names[i] = s.Name
		if err := c.PutInput(ctx, id, s.Name, s.PNG); err != nil {
			return err
		}
	}
	if sheep == "cog" {
		input, err := json.Marshal(map[string]any{"images": names})
		if err != nil {
			return err
		}
		if err := c.PutInput(ctx, id, "input", input); err != nil {
			return err
		}
	}
	return c.StartJobOn(ctx, id, model, "v1", sheep)
}

// readAny reads the predicted digits, in the order of the samples.
func readAny(sheep string, body []byte, samples []digits.Sample) ([]int, error) {
	if sheep == "cog" {
		var found []int
		if err := json.Unmarshal(body, &found); err != nil {
			return nil, err
		}
		if len(found) != len(samples) {
			return nil, fmt.Errorf("%d digits of %d", len(found), len(samples))
		}
		return found, nil
	}
	var result classify.Result
	if err := json.Unmarshal(body, &result); err != nil {
		return nil, err
	}
	byName := make(map[string]int, len(result.Predictions))
	for _, p := range result.Predictions {
		byName[p.Input] = p.Digit
	}
	found := make([]int, len(samples))
	for i, s := range samples {
		digit, ok := byName[s.Name]
		if !ok {
			return nil, errors.New("there is nothing about " + s.Name)
		}
		found[i] = digit
	}
	return found, nil
}
