package messengertest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// Actor is the runner that the suite asks. What it does with a job is said by
// the part of the job's id before the first '-':
//
//	done-…   answers that it is done
//	fail-…   answers with Failed
//	twice-…  answers twice that it is done
//	again-…  repeats the last answer to an earlier job, then answers
//	noise-…  says much that is no answer to the job, then answers
//	wait-…   answers when the file Release(in) exists
//	count-…  answers with a failure whose message is how often it was given
//	         the job that the rest of the id names
//	exit-…   answers, then ends
//	die-…    ends
//
// The zero Actor is ready. It is used by one goroutine at a time, as a runner's
// jobs come one by one.
type Actor struct {
	given map[job.ID]int
	last  []byte
}

// Failed is the failure of a job that fails.
var Failed = job.Failure{
	Message:   "KeyError: 'žluť'",
	Type:      "<class 'KeyError'>",
	Traceback: "['  File \"model.py\", line 1, in predict\\n']",
}

// Release is the file whose coming lets a waiting job end.
func Release(in messenger.Input) string {
	return filepath.Join(in.IODataRoot, string(in.JobID)+".release")
}

// Act is given what a runner receives. It returns the frames that the runner
// answers with, in order, and whether it then ends. The error says that frame is
// no input; a runner never gets one.
func (a *Actor) Act(ctx context.Context, frame []byte) (answers [][]byte, end bool, err error) {
	in, err := messenger.DecodeInput(frame)
	if err != nil {
		return nil, false, err
	}
	if a.given == nil {
		a.given = make(map[job.ID]int)
	}
	a.given[in.JobID]++
	done, err := messenger.EncodeAnswer(messenger.Answer{JobID: in.JobID})
	if err != nil {
		return nil, false, err
	}
	answer, before := done, [][]byte(nil)
	what, rest, _ := strings.Cut(string(in.JobID), "-")
	switch what {
	case "done":
	case "fail":
		failed := Failed
		answer, err = messenger.EncodeAnswer(messenger.Answer{JobID: in.JobID, Failure: &failed})
	case "twice":
		before = [][]byte{done}
	case "again":
		before = [][]byte{a.last}
	case "noise":
		before = noise(in)
	case "wait":
		err = await(ctx, Release(in))
	case "count":
		answer, err = messenger.EncodeAnswer(messenger.Answer{JobID: in.JobID, Failure: &job.Failure{
			Message: fmt.Sprint(a.given[job.ID(rest)]),
		}})
	case "exit":
		end = true
	case "die":
		return nil, true, nil
	default:
		err = fmt.Errorf("job id %q does not say what to do", in.JobID)
	}
	if err != nil {
		return nil, false, err
	}
	a.last = answer
	return append(before, answer), end, nil
}

// noise is what nobody should take for an answer to in.
func noise(in messenger.Input) [][]byte {
	said := [][]byte{nil, []byte("\xff\x00garbage"), []byte("[]"), []byte("null"), []byte("{}"), []byte(strings.Repeat("{", 1000))}
	for _, message := range []string{
		`{"message": {"job_id": null, "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "../%s", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "%s", "message_type": "NoSuchMessage"}}`,
		`{"message": {"job_id": "%s", "message_type": "InputMessage", "io_data_root": "/"}}`,
		`{"message": {"job_id": "another-%s", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "another-%s", "message_type": "ErrorMessage", "message": "of another job"}}`,
	} {
		said = append(said, []byte(strings.Replace(message, "%s", string(in.JobID), 1)))
	}
	return said
}

// await waits for a file, which may be made by another process.
func await(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
