package remote

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config/size"
)

// submission is what a user asks of one job.
type submission struct {
	request   client.JobRequest
	inputs    inputs
	key       string // Idempotency-Key
	repeats   bool   // it is the user's: another submission with it is the same job
	to        string // where outputs go; empty for nowhere
	noWait    bool
	quiet     bool
	interrupt string // what an interrupt does to the job: ask, cancel or leave
	form      Format
}

func submit(t *Target) *cobra.Command {
	var s submission
	var wanted jobFlags
	cmd := &cobra.Command{
		Use:   "submit MODEL [PATH…]",
		Short: "Run a job: inputs in, wait, results out",
		Long: "Submits a job with files as its inputs, shows its progress until it has ended, and\n" +
			"fetches its outputs. A file keeps its name; the files of a directory keep their paths\n" +
			"below it; - is standard input, as the input named `input`; NAME=PATH gives another\n" +
			"name. With -o DIR the outputs are written to a directory. With -o - one is written to\n" +
			"standard output, and also without -o if an input is standard input.\n\n" +
			"The exit code says how the job ended: 0 done, 3 failed, 4 cancelled; the manual has\n" +
			"the others. Ctrl-C asks whether to cancel the job; otherwise it continues.",
		Example: "  shepherd submit digits:v1 page.png -o results\n" +
			"  shepherd submit digits:v1 pages/ -o results --label batch=42\n" +
			"  echo '0 0 5 13' | shepherd submit digits:v1 - | jq .\n" +
			"  shepherd submit report:v1 --from job-1 --no-wait -o name\n" +
			"  shepherd submit report:v1 --after job-1 --after job-2 -o results",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("a model is needed: NAME:VERSION")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if s.inputs, err = findInputs(args[1:]); err != nil {
				return err
			}
			if s.request, err = wanted.request(cmd.Flags(), args[0], len(s.inputs.files)); err != nil {
				return err
			}
			if err := s.checkFlags(); err != nil {
				return err
			}
			return t.runTaking(cmd, func(ctx context.Context, session *session) error { return s.run(ctx, session) })
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault // files
			}
			found, err := models(t)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return found, cobra.ShellCompDirectiveNoFileComp
		},
	}
	s.add(cmd.Flags())
	wanted.add(cmd.Flags())
	complete(cmd, "sheep", sheepNames, t)
	return cmd
}

// add defines the flags of what is not the job's: its outputs, and what is shown.
func (s *submission) add(f *pflag.FlagSet) {
	f.StringVarP(&s.to, "out", "o", "", "directory for the outputs; - is standard output, for one file. With --no-wait the format of the answer: table, name, json or jsonl")
	f.BoolVar(&s.noWait, "no-wait", false, "print the job's id, and do not wait for its end")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "do not show progress")
	f.StringVar(&s.interrupt, "on-interrupt", "ask", "what Ctrl-C does to the job: ask, cancel or leave; without a terminal ask is leave")
	f.StringVar(&s.key, "idempotency-key", "", "a key of your choice: repeated commands with the same key submit the job once")
}

// checkFlags checks these flags, and fills in what was not given.
func (s *submission) checkFlags() error {
	switch s.interrupt {
	case "ask", "cancel", "leave":
	default:
		return usage("--on-interrupt: %q is none of ask, cancel and leave", s.interrupt)
	}
	if s.noWait {
		if s.to == "" {
			s.to = FormTable
		}
		if err := s.form.Set(s.to); err != nil {
			return usage("-o is the form of the answer with --no-wait: %w", err)
		}
	} else if s.to == "" && s.inputs.stdin {
		s.to = toStdout
	}
	if s.repeats = s.key != ""; !s.repeats {
		s.key = rand.Text()
	}
	return nil
}

// run submits the job, waits for it and fetches its outputs.
func (s *submission) run(ctx context.Context, on *session) error {
	shown := newDisplay(on.err, s.quiet || s.noWait && !isTerminal(on.err))
	defer shown.end()
	var submitted client.Job
	err := on.interruptible(ctx, func(ctx context.Context) (err error) {
		submitted, err = s.send(ctx, on, shown)
		return err
	})
	if err != nil {
		shown.interrupted()
		return err
	}
	id := submitted.JobId
	if s.noWait {
		shown.end()
		if s.form == FormTable {
			_, err := fmt.Fprintln(on.out, id+" is "+string(submitted.Status))
			return err
		}
		printer := jobPrinter{to: on.out, form: s.form, heading: true}
		return errors.Join(printer.add(submitted), printer.flush())
	}
	j, err := s.await(ctx, on, id, shown)
	if err != nil {
		return err
	}
	if err := outcome(j); err != nil {
		shown.interrupted()
		return on.interruptible(ctx, func(ctx context.Context) error {
			on.explainEnds(ctx, err)
			return err
		})
	}
	for _, warning := range j.Warnings {
		fmt.Fprintln(on.err, "warning:", clean(warning))
	}
	if s.to == "" {
		shown.end()
		return on.interruptible(ctx, func(ctx context.Context) error { return on.announce(ctx, id) })
	}
	err = on.interruptible(ctx, func(ctx context.Context) error {
		if s.to == toStdout {
			shown.end()
		}
		return on.fetch(ctx, id, nil, s.to, shown)
	})
	if err != nil {
		shown.interrupted()
		return fmt.Errorf("job %s is done, but its outputs were not fetched (`%s result %s -o DIR` does it again): %w", id, on.program, id, err)
	}
	return nil
}

// announce says that a job is done, and what came out.
func (s *session) announce(ctx context.Context, id string) error {
	there, err := s.outputs(ctx, id)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s is done, with %s, %s; fetch them with `%s result %s -o DIR`\n", id, counted(len(there.Files), "output"), size.Text(there.Bytes), s.program, id)
	return err
}

// send submits the job, with its inputs.
func (s *submission) send(ctx context.Context, on *session, shown *display) (client.Job, error) {
	params := client.CreateJobParams{IdempotencyKey: &s.key}
	var answer *client.CreateJobResponse
	var err error
	uploaded := false
	if s.straight() {
		if uploaded, err = s.upload(ctx, on, shown); err != nil {
			return client.Job{}, err
		}
	}
	if len(s.inputs.files) == 0 || uploaded {
		answer, err = on.CreateJobWithResponse(ctx, &params, s.request)
	} else {
		count := shown.transfer(stageUpload, s.inputs.size)
		reading, stop := context.WithCancel(ctx)
		stdin := &stoppableReader{from: on.in, stop: reading.Done()}
		form := client.NewForm(s.request, func(w *client.FormWriter) error { return s.inputs.write(w, stdin, count) })
		defer form.Close()
		defer stop() // Close waits for the reading
		answer, err = on.CreateJobWithBodyWithResponse(ctx, &params, form.ContentType(), form)
	}
	if err != nil {
		return client.Job{}, err
	}
	j := cmp.Or(answer.JSON201, answer.JSON200)
	if j == nil {
		return client.Job{}, errors.New("the daemon's answer to the submission cannot be read")
	}
	return *j, nil
}

// await waits for the job's end, and takes interrupts meanwhile.
func (s *submission) await(ctx context.Context, on *session, id string, shown *display) (client.Job, error) {
	type end struct {
		job client.Job
		err error
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan end, 1)
	screen := jobScreen{display: shown}
	go func() {
		j, err := on.await(ctx, id, screen.show)
		ended <- end{j, err}
	}()
	leave := func() (client.Job, error) {
		stop()
		<-ended
		fmt.Fprintf(on.err, "Job %s goes on: `%s wait %s` waits for it, `%s cancel %s` ends it.\n", id, on.program, id, on.program, id)
		return client.Job{}, &Error{Code: ExitInterrupted}
	}
	for cancelling := false; ; {
		select {
		case e := <-ended:
			if e.err != nil && ctx.Err() == nil {
				shown.interrupted()
				e.err = fmt.Errorf("job %s is submitted, but cannot be waited for: %w", id, e.err)
			}
			return e.job, e.err
		case <-on.interrupts:
		}
		if cancelling {
			return leave()
		}
		screen.pause()
		choice := s.interrupt
		if choice == "ask" {
			choice = on.askCancel(id)
		}
		switch choice {
		case "leave":
			return leave()
		case "cancel":
			said, err := on.cancelJob(ctx, id)
			if client.Is(err, 409) { // it has ended meanwhile
				said, err = id+" has ended", nil
			}
			if err != nil {
				fmt.Fprintf(on.err, "Job %s could not be cancelled: %v\n", id, err)
				return leave()
			}
			fmt.Fprintln(on.err, said)
			cancelling = true
		}
		screen.resume()
	}
}

// jobScreen shows a job, but while something is asked.
type jobScreen struct {
	display *display

	mu     sync.Mutex
	paused bool
	last   client.Job
}

func (s *jobScreen) show(j client.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last = j; !s.paused {
		s.display.job(j)
	}
}

func (s *jobScreen) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
	s.display.interrupted()
}

// resume shows the job as it is now.
func (s *jobScreen) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	if s.last.JobId != "" {
		s.display.job(s.last)
	}
}

// askCancel asks whether an interrupted job shall be cancelled: leave, cancel or wait.
// A second interrupt, and where nobody can be asked, means leave.
func (s *session) askCancel(id string) string {
	if f, ok := s.in.(*os.File); !ok || !isTerminal(f) || !isTerminal(s.err) {
		return "leave"
	}
	return s.ask(fmt.Sprintf("\nCancel job %s? [y]es, [n]o: leave it, [w]ait on: ", id), bufio.NewReader(s.in))
}

// ask reads the answer to askCancel's question.
func (s *session) ask(question string, in *bufio.Reader) string {
	for {
		fmt.Fprint(s.err, question)
		answer := make(chan string, 1)
		go func() { // ends with the program, should nobody answer
			line, err := in.ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) || err != nil && line == "" {
				line = "n"
			}
			answer <- strings.ToLower(strings.TrimSpace(line))
		}()
		select {
		case <-s.interrupts:
			fmt.Fprintln(s.err)
			return "leave"
		case text := <-answer:
			switch {
			case strings.HasPrefix("yes", text) && text != "":
				return "cancel"
			case strings.HasPrefix("no", text) && text != "":
				return "leave"
			case strings.HasPrefix("wait", text) && text != "":
				return "wait"
			}
		}
	}
}
