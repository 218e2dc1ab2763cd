package embedded

import (
	"context"
	"fmt"
	"strings"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// jobsPage is how many buckets or prefixes Jobs reads at a time.
const jobsPage = 1000

// Jobs implements storage.Store.
func (o *Store) Jobs(ctx context.Context, visit func(job.ID) error) error {
	after := ""
	for {
		names, next, err := o.jobsAfter(ctx, after)
		if err != nil {
			return fmt.Errorf("list the jobs in storage: %w", storeError(err))
		}
		for _, name := range names {
			if o.CheckID(job.ID(name)) != nil {
				continue
			}
			if err := visit(job.ID(name)); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// jobsAfter is a page of the names that sort after after, and where the next one
// begins: "" at the end.
func (o *Store) jobsAfter(ctx context.Context, after string) (names []string, next string, err error) {
	if o.layout.Bucket == "" {
		buckets, more, err := o.folder.Buckets(ctx, "", after, jobsPage)
		for _, b := range buckets {
			names = append(names, b.Name)
		}
		if more {
			next = names[len(names)-1]
		}
		return names, next, err
	}
	page, err := o.folder.List(ctx, o.layout.Bucket, folder.Query{Delimiter: "/", After: after, Max: jobsPage, Damaged: true})
	for _, item := range page.Items {
		if name, ok := strings.CutSuffix(item.Prefix, "/"); ok {
			names = append(names, name)
		}
	}
	return names, page.Next, err
}
