package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// report is the result of all jobs, as the remaining node reports it.
type report struct {
	loss         loss
	jobs         int
	ran          map[string]map[string]int // jobs done, by node and sheep
	moved        []move
	right        int
	lost, double []string // jobs
}

// move is a job that began on one node and ended on another.
type move struct {
	job, from, to, cause string
	back                 time.Duration // in the queue again, after the loss
	again                time.Duration // running elsewhere, after the loss
}

func (w *work) report(ctx context.Context, asked *node, k loss) (report, error) {
	r := report{loss: k, jobs: len(w.samples), ran: map[string]map[string]int{}}
	for i, s := range w.samples {
		id := w.jobID(i)
		attempts, err := attemptsOf(ctx, asked, id)
		if err != nil {
			return r, err
		}
		ended := 0
		for j, a := range attempts {
			if a.Cause == nil || *a.Cause != "done" {
				continue
			}
			ended++
			if r.ran[nodeOf(a)] == nil {
				r.ran[nodeOf(a)] = map[string]int{}
			}
			r.ran[nodeOf(a)][a.Sheep]++
			if j == 0 {
				continue
			}
			before := attempts[j-1]
			m := move{job: id, from: nodeOf(before) + "/" + before.Sheep, to: nodeOf(a) + "/" + a.Sheep, cause: *before.Cause}
			if m.back, err = since(k.at, before.EndedAt); err != nil {
				return r, err
			}
			if m.again, err = since(k.at, a.StartedAt); err != nil {
				return r, err
			}
			r.moved = append(r.moved, m)
		}
		switch {
		case ended == 0:
			r.lost = append(r.lost, id)
		case ended > 1:
			r.double = append(r.double, id)
		}
		if w.answers[i] == s.Label {
			r.right++
		}
	}
	return r, nil
}

// since is the time from a moment to one that the API told.
func since(moment time.Time, told *string) (time.Duration, error) {
	if told == nil {
		return 0, fmt.Errorf("an attempt has no time")
	}
	at, err := time.Parse("2006-01-02T15:04:05", *told) // UTC, with or without a fraction
	return at.Sub(moment).Round(10 * time.Millisecond), err
}

func (r report) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tSHEEP\tDIGITS")
	for _, node := range []string{"a", "b"} {
		for _, sheep := range []string{"left", "right"} {
			fmt.Fprintf(table, "%s\t%s\t%d\n", node, sheep, r.ran[node][sheep])
		}
	}
	fmt.Fprintln(table)
	fmt.Fprintln(table, "MOVED\tFROM\tBECAUSE\tQUEUED AGAIN AFTER\tTO\tRAN AGAIN AFTER")
	for _, m := range r.moved {
		fmt.Fprintf(table, "%s\t%s\t%s\t%v\t%s\t%v\n", m.job, m.from, m.cause, m.back, m.to, m.again)
	}
	_ = table.Flush() // an error of the terminal cannot be reported
	fmt.Fprintf(out, "\n%d of %d digits right; jobs: %d moved, %d lost, %d doubled\n", r.right, r.jobs, len(r.moved), len(r.lost), len(r.double))
}

// verdict returns an error if jobs were lost or ended twice.
func (r report) verdict() error {
	switch {
	case len(r.lost)+len(r.double) > 0:
		return fmt.Errorf("lost %v, doubled %v", r.lost, r.double)
	case len(r.moved) == 0:
		return fmt.Errorf("node %s had %d jobs, and none of them ran elsewhere", r.loss.node, r.loss.held)
	case r.right < r.jobs*9/10:
		return fmt.Errorf("%d of %d digits are right: the model is far better than that", r.right, r.jobs)
	}
	return nil
}
