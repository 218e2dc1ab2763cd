package shepherd

import (
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
)

// ending is how an attempt ended, as far as its sheep knows.
type ending struct {
	cause job.Cause
	// reason is the cause in words for clients and operators.
	reason string
	// failure is what the job fails with if it does; nil stands for reason.
	failure *job.Failure
}

// facts are what a verdict depends on beside the cause.
type facts struct {
	now time.Time
	// spent is how many earlier attempts of the run count towards its tries, and
	// retries how often a job may fail by its own fault and be tried again, after
	// pause the first time.
	spent, retries int
	pause          time.Duration
	// maxAttempts is how many attempts of a run may take a sheep or a device down,
	// this one included.
	maxAttempts int
	// elsewhere says that another sheep may run the job.
	elsewhere bool
	// patience is how long what loading the model needs may not answer, 0 for ever.
	patience time.Duration
	// tries is how many attempts the run has had, this one included.
	tries int
	history
}

// verdict is what becomes of a job after an attempt.
type verdict struct {
	// state is the job's final state, or empty where the job goes back to the
	// queue.
	state job.State
	// message replaces the ending's failure; empty leaves it.
	message string
	// Of a job that goes back: whether the attempt counts, and the earliest time
	// of the next one.
	spent     bool
	notBefore time.Time
	// rests says that the sheep does not claim for a while, and modelRests that it
	// claims no job of this model.
	rests, modelRests bool
}

// maxRetryPause bounds the pause between two tries of one job.
const maxRetryPause = time.Hour

// A job that is being prepared when the daemon is killed may be the reason, but
// so may any other: it is tried maxKilled times, with pauses of at most
// maxKilledPause, so that what is left of chance does not fail a job.
const (
	maxKilled      = 20
	maxKilledPause = time.Minute
)

// judge decides what becomes of a job whose attempt ended. It is the only place
// that does; docs/job-states.md shows it as a table.
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

	case job.CauseNodeLost: // see wornOut
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
	// The job's own fault, and causes that are not known.
	if f.spent >= f.retries {
		return verdict{state: job.Failed}
	}
	return verdict{spent: true, notBefore: f.now.Add(backoff(f.pause, f.spent))}
}

// backoff doubles a pause for each earlier try, to at most maxRetryPause.
func backoff(pause time.Duration, earlier int) time.Duration {
	for range earlier {
		if pause <= 0 || pause >= maxRetryPause/2 {
			break
		}
		pause *= 2
	}
	return min(max(pause, 0), maxRetryPause)
}

// wrecks reports whether an attempt with this cause took a sheep, a device or, where
// it was spent, a node down: a job that does so again and again is not tried for ever.
func wrecks(c job.Cause) bool {
	return c == job.CauseDevice || c == job.CauseLost || c == job.CauseInterrupted || c == job.CauseNodeLost
}

// history is what the earlier attempts of a run tell a verdict.
type history struct {
	// wrecked is how many took a sheep, a device or a node down.
	wrecked int
	// killed is how many were being prepared when the daemon was killed.
	killed int
	// unavailable is since when, without a break, what loading the model needs has
	// not answered.
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
