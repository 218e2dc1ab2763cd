package remote

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// toStdout is the destination that is standard output.
const toStdout = "-"

// defaultOutput is the output that is meant where several are there and one is wanted.
const defaultOutput = "output"

func result(t *Target) *cobra.Command {
	var to string
	var list, quiet bool
	cmd := &cobra.Command{
		Use:   "result JOB [FILE…]",
		Short: "Fetch the outputs of a job",
		Long: "Fetches the outputs of a job that is done. With -o DIR all of them, or the named ones,\n" +
			"are written to a directory. Otherwise one is written to standard output: the named\n" +
			"one, the only one, or the one with the name `output`. If the job is not done, the exit\n" +
			"code says how it ended.",
		Example: "  shepherd result job-1 -o results\n  shepherd result job-1 predictions.json | jq .",
		Args:    jobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				j, err := s.job(ctx, args[0])
				if err != nil {
					return err
				}
				if !j.Status.Final() {
					return &Error{Code: ExitConflict, Err: fmt.Errorf("job %s has not ended: it is %s; `%s wait %s` waits for it", j.JobId, j.Status, s.program, j.JobId)}
				}
				if err := outcome(j); err != nil {
					s.explainEnds(ctx, err)
					return err
				}
				if list {
					return s.listOutputs(ctx, j.JobId)
				}
				shown := newDisplay(s.err, quiet || to == toStdout)
				defer shown.end()
				return s.fetch(ctx, j.JobId, args[1:], to, shown)
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	cmd.Flags().StringVarP(&to, "out", "o", toStdout, "directory for the outputs; - is standard output, for one file")
	cmd.Flags().BoolVarP(&list, "list", "l", false, "show the names and sizes of the outputs instead")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
	return cmd
}

// outputs are the files that came out of a job.
func (s *session) outputs(ctx context.Context, id string) (client.FileList, error) {
	answer, err := s.ListOutputsWithResponse(ctx, id, &client.ListOutputsParams{})
	if err != nil {
		return client.FileList{}, err
	}
	if answer.JSON200 == nil {
		return client.FileList{}, fmt.Errorf("the daemon's list of the outputs of job %s cannot be read", id)
	}
	return *answer.JSON200, nil
}

func (s *session) listOutputs(ctx context.Context, id string) error {
	there, err := s.outputs(ctx, id)
	if err != nil {
		return err
	}
	rows := table{{"NAME", "BYTES"}}
	for _, f := range there.Files {
		rows = append(rows, []string{f.Name, strconv.FormatInt(f.Size, 10)})
	}
	return rows.print(s.out)
}

// fetch writes outputs of a job to a directory or, one alone, to standard output. No
// names are all of them.
func (s *session) fetch(ctx context.Context, id string, names []string, to string, shown *display) error {
	there, err := s.outputs(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(there.Files, func(f client.FileEntry) bool { return f.Name == name }) {
			return &Error{Code: ExitNotFound, Err: fmt.Errorf("job %s has no output %s; it has %s", id, name, namesOf(there))}
		}
	}
	if to == toStdout {
		return s.fetchOne(ctx, id, names, there)
	}
	if err := os.MkdirAll(to, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(to) // nothing is written elsewhere, whatever the names are
	if err != nil {
		return err
	}
	defer root.Close()
	if len(names) == 0 {
		return s.fetchAll(ctx, id, root, there, shown)
	}
	for _, name := range names {
		response, err := s.openOutput(ctx, id, name)
		if err != nil {
			return err
		}
		err = writeOutput(root, name, response.Body)
		response.Body.Close()
		if err != nil {
			return fmt.Errorf("fetch %s of job %s: %w", name, id, err)
		}
	}
	return nil
}

func (s *session) fetchOne(ctx context.Context, id string, names []string, there client.FileList) error {
	name := ""
	switch {
	case len(names) == 1:
		name = names[0]
	case len(names) > 1:
		return usage("standard output takes one file; give a directory with -o")
	case len(there.Files) == 1:
		name = there.Files[0].Name
	case slices.ContainsFunc(there.Files, func(f client.FileEntry) bool { return f.Name == defaultOutput }):
		name = defaultOutput
	case len(there.Files) == 0:
		return &Error{Code: ExitNotFound, Err: fmt.Errorf("job %s has no outputs", id)}
	default:
		return usage("job %s has several outputs: give a directory with -o, or name one of %s", id, namesOf(there))
	}
	response, err := s.openOutput(ctx, id, name)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(s.out, response.Body); err != nil {
		return fmt.Errorf("fetch %s of job %s: %w", name, id, err)
	}
	return nil
}

// openOutput opens one output; the caller closes the response's body.
func (s *session) openOutput(ctx context.Context, id, name string) (*http.Response, error) {
	response, err := s.GetResultFile(ctx, id, name)
	if err != nil || response.StatusCode == http.StatusOK {
		return response, err
	}
	response.Body.Close() // says that the job is not ready, and is no output
	return nil, &Error{Code: ExitConflict, Err: fmt.Errorf("job %s was run again meanwhile and has not ended; `%s wait %s` waits for it", id, s.program, id)}
}

// namesOf lists the names of some outputs, for messages.
func namesOf(there client.FileList) string {
	const most = 10
	var names []string
	for _, f := range there.Files[:min(len(there.Files), most)] {
		names = append(names, clean(f.Name))
	}
	if more := len(there.Files) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// fetchAll writes all outputs to a directory, from one stream.
func (s *session) fetchAll(ctx context.Context, id string, root *os.Root, there client.FileList, shown *display) error {
	response, err := s.GetOutputsTar(ctx, id)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	count := shown.transfer(stageDownload, there.Bytes)
	came := make(map[string]bool)
	for from := tar.NewReader(response.Body); ; {
		header, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = writeOutput(root, header.Name, io.TeeReader(from, count))
		}
		if err != nil {
			return fmt.Errorf("fetch the outputs of job %s: %w", id, err)
		}
		came[header.Name] = true
	}
	there.Files = slices.DeleteFunc(slices.Clone(there.Files), func(f client.FileEntry) bool { return came[inArchive(f.Name)] })
	if len(there.Files) > 0 {
		return fmt.Errorf("fetch the outputs of job %s: not all that are listed came; missing: %s", id, namesOf(there))
	}
	return nil
}

// inArchive is the name that an output has in an archive.
func inArchive(name string) string { return strings.ReplaceAll(name, `\`, "_") }

// writeOutput writes a file below a directory, as a whole or not at all. One that is
// there is replaced.
func writeOutput(root *os.Root, name string, content io.Reader) error {
	local, err := filepath.Localize(name)
	if err != nil {
		return fmt.Errorf("%s cannot be a file's name here", name)
	}
	if dir := filepath.Dir(local); dir != "." {
		if err := root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	part := filepath.FromSlash(path.Join(path.Dir(name), ".shepherd-part-"+rand.Text())) // others may write here, too
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(part, local)
	}
	if err != nil {
		return errors.Join(err, root.Remove(part))
	}
	return nil
}
