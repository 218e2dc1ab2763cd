package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// Models are the models of a daemon, by its API, or of this machine where no daemon is
// running.
type Models interface {
	// Pull fetches a model and reports how far it is.
	Pull(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error
	List(ctx context.Context) (job.KeptModels, error)
	// Remove removes a model, of a node of a fleet or, where that is empty, of all.
	Remove(ctx context.Context, m job.Model, node string) error
}

func modelsCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{
		Use:   "models",
		Short: "Pull models ahead of time, list and remove them",
		Long: "Fetches, lists and removes the models of container sheep, in a fleet those of all\n" +
			"nodes. With -c it asks the daemon that runs with that configuration or, if none does,\n" +
			"it works without a daemon, on this machine.",
	}
	t.Add(cmd.PersistentFlags())

	// with runs do with whom the flags name.
	with := func(cmd *cobra.Command, do func(context.Context, Models) error) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		asked, closeModels, err := t.openModels(ctx, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		defer closeModels()
		err = do(ctx, asked)
		if err != nil && ctx.Err() != nil {
			return &Error{Code: ExitInterrupted, Err: errors.New("interrupted; what was fetched is kept for the next time")}
		}
		return Hint(err)
	}

	var sheep, node string
	var quiet bool
	pull := &cobra.Command{
		Use:   "pull NAME[:VERSION]…",
		Short: "Pull models",
		Args:  atLeastOneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, asked Models) error {
				for _, arg := range args {
					shown := newDisplay(cmd.ErrOrStderr(), quiet)
					err := asked.Pull(ctx, job.PullOrder{Model: job.ParseModel(arg), Node: node, Sheep: sheep}, shown.pull)
					if err != nil {
						shown.interrupted()
						return fmt.Errorf("pull %s: %w", arg, err)
					}
					shown.end()
					fmt.Fprintf(cmd.OutOrStdout(), "%s is here\n", job.ParseModel(arg))
				}
				return nil
			})
		},
	}
	pull.Flags().StringVar(&sheep, "sheep", "", "fetch for this sheep only (default: for all that fetch models)")
	pull.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
	pull.Flags().StringVar(&node, "node", "", "fetch on this node of a fleet only (default: on all)")
	complete(pull, "sheep", sheepNames, t)
	remove := &cobra.Command{
		Use:     "rm NAME[:VERSION]…",
		Aliases: []string{"remove"},
		Short:   "Remove models that no job or sheep needs",
		Args:    atLeastOneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, asked Models) error {
				var errs []error
				for _, arg := range args {
					if err := asked.Remove(ctx, job.ParseModel(arg), node); err != nil {
						errs = append(errs, fmt.Errorf("remove %s: %w", arg, err))
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s is removed\n", job.ParseModel(arg))
				}
				return errors.Join(errs...)
			})
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			found, err := models(t)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return found, cobra.ShellCompDirectiveNoFileComp
		},
	}
	remove.Flags().StringVar(&node, "node", "", "remove from this node of a fleet only (default: from all)")
	cmd.AddCommand(pull, remove, listModels(t, with))
	return cmd
}

// listModels lists what is kept; with runs something with the models.
func listModels(t *Target, with func(*cobra.Command, func(context.Context, Models) error) error) *cobra.Command {
	var form Format
	var watch bool
	list := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the models on the disk",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var lines *Listing[shownModel]
			print := func(ctx context.Context, asked Models) error {
				kept, err := asked.List(ctx)
				if err != nil {
					return err
				}
				for _, n := range kept.Unanswered {
					fmt.Fprintf(cmd.ErrOrStderr(), "The models of node %s are not known: %s\n", clean(n.Name), clean(n.Problem))
				}
				if len(kept.Models)+len(kept.Unanswered) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No models are kept here: none was pulled, or no configured sheep fetches any.")
				}
				shown := shownModels(kept.Models)
				if lines == nil {
					inFleet := len(kept.Unanswered) > 0 || slices.ContainsFunc(shown, func(m shownModel) bool { return m.Node != "" })
					lines = modelListing(cmd.OutOrStdout(), form, inFleet)
				}
				return lines.Print(shown)
			}
			if !watch {
				return with(cmd, print)
			}
			return t.run(cmd, func(ctx context.Context, s *session) error {
				if err := reach(ctx, s.ClientWithResponses); err != nil {
					return err
				}
				for change, err := range client.FollowFlock(ctx, s.ClientWithResponses) {
					if err != nil {
						return err
					}
					if change.Flock == nil && change.Jobs == nil {
						continue
					}
					if err := print(ctx, remoteModels{s.ClientWithResponses}); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	form.Add(list.Flags())
	list.Flags().BoolVarP(&watch, "watch", "w", false, "continue with changes")
	return list
}

// shownModel is a kept model as the API has it.
type shownModel struct {
	Name       string  `json:"name"`
	Version    string  `json:"version"`
	Reference  string  `json:"reference"`
	Digest     string  `json:"digest"`
	Size       int64   `json:"size"`
	OwnSize    int64   `json:"own_size"`
	LastUsedAt *string `json:"last_used_at"`
	InUse      bool    `json:"in_use"`
	Node       string  `json:"node,omitempty"`
}

func shownModels(list []job.KeptModel) []shownModel {
	shown := make([]shownModel, len(list))
	for i, m := range list {
		shown[i] = shownModel{
			Name: m.Model.Name, Version: m.Model.Version, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, OwnSize: m.Own, LastUsedAt: job.FormatTime(m.LastUsed), InUse: m.InUse, Node: m.Node,
		}
	}
	return shown
}

func atLeastOneModel(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage("a model is needed: NAME:VERSION")
	}
	return nil
}

// openModels connects to the daemon, or opens the models of this machine where none is
// running with the configuration. The caller calls close.
func (t *Target) openModels(ctx context.Context, logTo io.Writer) (_ Models, close func(), err error) {
	asked, err := t.Open()
	if err == nil {
		return remoteModels{asked}, asked.CloseIdle, nil
	}
	if t.config.LocalModels == nil || !errors.Is(err, ErrNoDaemon) {
		return nil, nil, err
	}
	return t.config.LocalModels(ctx, t.File, logTo)
}

// modelListing prints models in the form that is asked for, with their nodes where they
// have some.
func modelListing(to io.Writer, form Format, inFleet bool) *Listing[shownModel] {
	l := &Listing[shownModel]{
		To: to, Form: form, Heading: []string{"NAME", "VERSION", "SIZE", "UNIQUE", "LAST USED", "IN USE", "DIGEST"},
		Name: func(m shownModel) string { return job.Model{Name: m.Name, Version: m.Version}.String() },
		Row:  func(m shownModel) []string { return modelRow(m, form) },
	}
	switch {
	case inFleet && form == FormName: // each once, on however many nodes it is
		l.Row = func(shownModel) []string { return nil }
	case inFleet:
		l.Heading = append([]string{"NODE"}, l.Heading...)
		l.Row = func(m shownModel) []string { return append([]string{m.Node}, modelRow(m, form)...) }
		l.Key = func(m shownModel) string { return m.Node + "/" + l.Name(m) }
	}
	return l
}

// modelRow is a model's line.
func modelRow(m shownModel, form Format) []string {
	used, last := "no", "never"
	if m.InUse {
		used = "yes"
	}
	if at, ok := moment(deref(m.LastUsedAt)); ok {
		last = at.Format(time.DateTime)
	}
	digest := m.Digest
	if algorithm, hex, ok := strings.Cut(digest, ":"); ok && len(hex) > 12 && form != FormWide {
		digest = algorithm + ":" + hex[:12]
	}
	return []string{m.Name, cmp.Or(m.Version, "-"), size.Text(m.Size), size.Text(m.OwnSize), last, used, digest}
}

// remoteModels are the models of a daemon, by its API.
type remoteModels struct{ *client.ClientWithResponses }

// Pull requests a pull and reports its progress.
func (r remoteModels) Pull(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	request := client.PullRequest{SheepId: orNone(o.Sheep)}
	request.Model.Name, request.Model.Version = o.Model.Name, o.Model.Version
	response, err := r.PullModel(ctx, &client.PullModelParams{Progress: new("true"), Node: orNone(o.Node)}, request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for stream := json.NewDecoder(response.Body); ; {
		var p client.PullProgress
		err := stream.Decode(&p)
		if _, other := errors.AsType[*json.SyntaxError](err); other {
			return fmt.Errorf("the daemon's answer cannot be read: %w", err)
		}
		if err != nil {
			return fmt.Errorf("the connection to the daemon ended during the pull: %w", err)
		}
		switch {
		case p.Error != nil:
			return errors.New(*p.Error)
		case p.Success != nil:
			return nil
		}
		report(job.PullProgress{Text: p.Text, Done: value(p.Done), Total: value(p.Total), Rate: float64(value(p.Rate))})
	}
}

func value(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// orNone is a parameter that is left out where it is empty.
func orNone(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// List returns the models that the daemon keeps, of a fleet those of all nodes.
func (r remoteModels) List(ctx context.Context) (job.KeptModels, error) {
	var kept job.KeptModels
	answer, err := r.ListModelsWithResponse(ctx)
	if err != nil {
		return kept, err
	}
	if answer.JSON200 == nil {
		return kept, errors.New("the daemon's list of models cannot be read")
	}
	for _, m := range answer.JSON200.Models {
		k := job.KeptModel{
			Model: job.Model{Name: m.Name, Version: m.Version}, Reference: m.Reference, Digest: m.Digest,
			Size: m.Size, Own: m.OwnSize, InUse: m.InUse, Node: deref(m.Node),
		}
		if m.LastUsedAt != nil {
			var err error
			if k.LastUsed, err = time.Parse("2006-01-02T15:04:05", *m.LastUsedAt); err != nil {
				return kept, fmt.Errorf("read the daemon's list of models: %w", err)
			}
		}
		kept.Models = append(kept.Models, k)
	}
	if answer.JSON200.Unanswered != nil {
		for _, n := range *answer.JSON200.Unanswered {
			kept.Unanswered = append(kept.Unanswered, job.UnansweredNode{Name: n.Name, Problem: n.Problem})
		}
	}
	return kept, nil
}

// Remove removes a model.
func (r remoteModels) Remove(ctx context.Context, m job.Model, node string) error {
	return succeeded(r.RemoveModelWithResponse(ctx, m.String(), &client.RemoveModelParams{Node: orNone(node)}))
}
