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

// Actor is the scripted runner of the suite. The part of a job's id before the first '-'
// decides how it processes the job:
//
//	done-…   answers that it is done
//	fail-…   answers with Failed
//	twice-…  answers twice that it is done
//	again-…  repeats the answer to the previous job, then answers
//	noise-…  sends messages that are not answers to the job, then answers
//	wait-…   answers when the file Release(in) exists
//	count-…  answers with a failure whose message is how often it received the job
//	         with the rest of the id
//	exit-…   answers, then ends
//	die-…    ends
//
// The zero Actor is ready to use, by one goroutine at a time.
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

// Release is the path of the file whose creation ends a waiting job.
func Release(in messenger.Input) string {
	return filepath.Join(in.IODataRoot, string(in.JobID)+".release")
}

// Act handles a frame that a runner has received. It returns the frames that the runner
// sends, in order, and whether the runner then ends. It returns an error if the frame is
// not an input, which the suite never sends.
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

// noise returns frames that must not be accepted as an answer to in.
func noise(in messenger.Input) [][]byte {
	frames := [][]byte{nil, []byte("\xff\x00garbage"), []byte("[]"), []byte("null"), []byte("{}"), []byte(strings.Repeat("{", 1000))}
	for _, message := range []string{
		`{"message": {"job_id": null, "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "../%s", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "%s", "message_type": "NoSuchMessage"}}`,
		`{"message": {"job_id": "%s", "message_type": "InputMessage", "io_data_root": "/"}}`,
		`{"message": {"job_id": "another-%s", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "another-%s", "message_type": "ErrorMessage", "message": "of another job"}}`,
	} {
		frames = append(frames, []byte(strings.Replace(message, "%s", string(in.JobID), 1)))
	}
	return frames
}

// await waits for a file, which another process may create.
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
