package shepherd

import (
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
)

// ending is how an attempt ended, as far as its sheep can tell.
type ending struct {
	cause job.Cause
	// reason describes the cause for clients and operators.
	reason string
	// failure is the job's failure if the job fails; nil means one with reason.
	failure *job.Failure
}

// facts are judge's input besides the ending.
type facts struct {
	now time.Time
	// spent is how many earlier attempts of the run count as tries, retries how often a job
	// may be retried after failing by its own fault, and pause the pause before the first
	// retry.
	spent, retries int
	pause          time.Duration
	// maxAttempts bounds the attempts of a run that take a sheep or a device down,
	// including this one.
	maxAttempts int
	// elsewhere is set if another sheep may run the job.
	elsewhere bool
	// patience is how long a dependency of loading the model may be unavailable before the
	// job fails; 0 is forever.
	patience time.Duration
	// tries is how many attempts the run has had, including this one.
	tries int
	history
}

// verdict is what happens to a job after an attempt.
type verdict struct {
	// state is the job's final state; empty sends the job back to the queue.
	state job.State
	// message replaces the ending's failure, unless it is empty.
	message string
	// For a job that goes back: whether the attempt counts as a try, and the earliest time
	// of the next attempt.
	spent     bool
	notBefore time.Time
	// rests makes the sheep stop claiming for a while, modelRests only jobs of this model.
	rests, modelRests bool
}

// maxRetryPause bounds the pause between two tries of one job.
const maxRetryPause = time.Hour

// A job whose preparation is interrupted by the death of the daemon may have caused it, or
// may be unrelated. It is tried maxKilled times, with pauses of up to maxKilledPause, so
// that it does not fail by coincidence.
const (
	maxKilled      = 20
	maxKilledPause = time.Minute
)

// judge decides what happens to a job whose attempt has ended. Nothing else decides that;
// docs/job-states.md shows the decisions as a table.
func judge(end ending, f facts) verdict {
	switch end.cause {
	case job.CauseDone:
		return verdict{state: job.Done}
	case job.CauseCancelled:
		return verdict{state: job.Cancelled}
	case job.CauseWaitTimeout, job.CauseDeadline, job.CauseAfter:
		return verdict{state: job.Failed}

	case job.CauseHandedBack, job.CauseTakenOver:
		return verdict{}
	case job.CauseSheep:
		return verdict{rests: true}
	case job.CauseNotHere:
		if f.elsewhere {
			return verdict{}
		}
		return verdict{state: job.Failed}
	case job.CauseUnavailable:
		if f.patience > 0 && !f.unavailable.IsZero() && f.now.Sub(f.unavailable) >= f.patience {
			return verdict{state: job.Failed}
		}
		return verdict{modelRests: true}

	case job.CauseDevice, job.CauseLost, job.CauseInterrupted:
		spent := end.cause != job.CauseDevice
		if f.wrecked+1 >= f.maxAttempts {
			return verdict{state: job.Failed, message: fmt.Sprintf("%s (tried %d times)", end.reason, f.tries)}
		}
		if end.cause == job.CauseDevice && !f.elsewhere {
			return verdict{state: job.Failed}
		}
		v := verdict{spent: spent}
		if f.wrecked > 0 {
			v.notBefore = f.now.Add(backoff(time.Second, f.wrecked-1))
		}
		return v

	case job.CauseNodeLost: // see lostTooOften
		return verdict{state: job.Failed}

	case job.CauseDaemonKilled:
		if f.killed+1 >= maxKilled {
			return verdict{state: job.Failed, message: fmt.Sprintf("%s (tried %d times)", end.reason, f.tries)}
		}
		var v verdict
		if f.killed > 0 {
			v.notBefore = f.now.Add(min(backoff(time.Second, f.killed-1), maxKilledPause))
		}
		return v

	case job.CauseError, job.CauseRunnerDied, job.CauseModel, job.CauseInputs, job.CauseOutputs,
		job.CauseLoadTimeout, job.CauseRunTimeout:
	}
	// The job's own fault, and unknown causes.
	if f.spent >= f.retries {
		return verdict{state: job.Failed}
	}
	return verdict{spent: true, notBefore: f.now.Add(backoff(f.pause, f.spent))}
}

// backoff doubles a pause for each earlier try, up to maxRetryPause.
func backoff(pause time.Duration, earlier int) time.Duration {
	for range earlier {
		if pause <= 0 || pause >= maxRetryPause/2 {
			break
		}
		pause *= 2
	}
	return min(max(pause, 0), maxRetryPause)
}

// wrecks reports whether a cause means that the attempt took a sheep, a device or a node
// down. The number of such attempts of a job is bounded.
func wrecks(c job.Cause) bool {
	return c == job.CauseDevice || c == job.CauseLost || c == job.CauseInterrupted || c == job.CauseNodeLost
}

// history summarizes the earlier attempts of a run for judge.
type history struct {
	// wrecked is the number of attempts that took a sheep, a device or a node down.
	wrecked int
	// killed is the number of attempts in preparation when the daemon was killed.
	killed int
	// unavailable is when the current unbroken series of attempts that failed with
	// job.CauseUnavailable began.
	unavailable time.Time
}

func historyOf(attempts []job.Attempt, run, number int) (h history) {
	for _, a := range attempts {
		if a.Run != run || a.Number >= number {
			continue
		}
		if wrecks(a.Cause) && (a.Spent || a.Cause != job.CauseNodeLost) {
			h.wrecked++
		}
		if a.Cause == job.CauseDaemonKilled {
			h.killed++
		}
		switch {
		case a.Cause != job.CauseUnavailable:
			h.unavailable = time.Time{}
		case h.unavailable.IsZero():
			h.unavailable = a.Began
		}
	}
	return h
}
