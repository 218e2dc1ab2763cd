// Command digit classifies pictures of digits, without any code for shepherd:
//
//	digit MODEL_DIRECTORY INPUT_DIRECTORY OUTPUT_FILE
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/iterait/shepherd/examples/digits/classify"
	"github.com/iterait/shepherd/examples/digits/model"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: digit MODEL_DIRECTORY INPUT_DIRECTORY OUTPUT_FILE")
		os.Exit(2)
	}
	classifier, err := model.Open(os.Args[1])
	if err == nil {
		err = classify.Job(context.Background(), classifier, os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "digit:", err)
		os.Exit(1)
	}
}
