package remote

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

const (
	// longestCompletion bounds how long a shell waits for the daemon.
	longestCompletion = 2 * time.Second
	// mostCompletions bounds how many ids a shell is given.
	mostCompletions = 100
)

// jobArgs completes arguments with the ids of jobs, the latest first; limit is how
// many arguments there may be, 0 for any number.
func jobArgs(t *Target, limit int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		const order = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		if limit > 0 && len(args) >= limit {
			return nil, order
		}
		found, err := recentJobs(t, begin)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var ids []string
		for _, j := range found {
			if !slices.Contains(args, j.JobId) {
				ids = append(ids, j.JobId+"\t"+string(j.Status)+", "+clean(modelName(j.Model)))
			}
		}
		return ids, order
	}
}

// recentJobs are the latest jobs whose ids begin with a text.
func recentJobs(t *Target, begin string) ([]client.Job, error) {
	params := client.ListJobsParams{Order: new("newest"), Limit: new("100")}
	if begin != "" {
		params.Prefix = &begin
	}
	var list []client.Job
	err := ask(t, func(ctx context.Context, daemon *client.ClientWithResponses) error {
		answer, err := daemon.ListJobsWithResponse(ctx, &params)
		if err == nil && answer.JSON200 != nil {
			list = answer.JSON200.Jobs[:min(len(answer.JSON200.Jobs), mostCompletions)]
		}
		return err
	})
	return list, err
}

// models are the models that the daemon keeps or has had jobs for.
func models(t *Target) ([]string, error) {
	names := map[string]bool{}
	list, err := recentJobs(t, "")
	if err != nil {
		return nil, err
	}
	for _, j := range list {
		names[modelName(j.Model)] = true
	}
	// A daemon whose sheep fetch none, or a caller who may not see them, has no list.
	_ = ask(t, func(ctx context.Context, daemon *client.ClientWithResponses) error {
		answer, err := daemon.ListModelsWithResponse(ctx)
		if err == nil && answer.JSON200 != nil {
			for _, m := range answer.JSON200.Models {
				names[modelName(client.Model{Name: &m.Name, Version: &m.Version})] = true
			}
		}
		return err
	})
	return slices.Sorted(maps.Keys(names)), nil
}

// sheepNames are the daemon's sheep.
func sheepNames(t *Target) ([]string, error) {
	var names []string
	err := ask(t, func(ctx context.Context, daemon *client.ClientWithResponses) error {
		answer, err := daemon.ListSheepWithResponse(ctx)
		if err == nil && answer.JSON200 != nil {
			for _, s := range answer.JSON200.Sheep {
				names = append(names, s.Name)
			}
		}
		return err
	})
	return names, err
}

// SheepArgs completes arguments with the names of the daemon's sheep.
func SheepArgs(t *Target) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		names, err := sheepNames(t)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// ask does something with the daemon within the time that a shell waits.
func ask(t *Target, do func(context.Context, *client.ClientWithResponses) error) error {
	daemon, err := t.Open()
	if err != nil {
		return err
	}
	defer daemon.CloseIdle()
	ctx, stop := context.WithTimeout(context.Background(), longestCompletion)
	defer stop()
	return do(ctx, daemon)
}

// complete completes the values of a flag.
func complete(cmd *cobra.Command, flag string, values func(*Target) ([]string, error), t *Target) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		found, err := values(t)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag is not defined, or completed already
	}
}
