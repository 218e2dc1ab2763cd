package shepherd

import (
	"cmp"
	"fmt"

	"github.com/iterait/shepherd/job"
)

// Log messages that the original shepherd also has, in its exact wording: people and scripts
// search for them. The names in them are logged as fields, too.

// nobody stands for an unaddressed job, as in the original.
const nobody = "None"

func (s *submitter) logQueued(r job.Request) {
	s.log.Info(fmt.Sprintf("En-queueing job `%s` for sheep `%s`", r.ID, cmp.Or(r.Sheep, nobody)), "job", r.ID, "model", r.Model.String(), "sheep", r.Sheep)
}

func (l *lane) logAssigned(a *attempt) {
	if !named(a.Sheep) {
		l.log.Info(fmt.Sprintf("Job `%s` is auto-assigned to sheep `%s`", a.ID, l.Name), "job", a.ID)
	}
}

func (l *lane) logPreparing(a *attempt) {
	l.log.Info(fmt.Sprintf("Preparing working directory for job `%s` on `%s`", a.ID, l.Name), "job", a.ID)
}

func (l *lane) logRequires(a *attempt) {
	l.log.Info(fmt.Sprintf("Job `%s` requires model `%s:%s` on `%s`", a.ID, a.Model.Name, a.Model.Version, l.Name), "job", a.ID, "model", a.Model.String())
}

func (l *lane) logStarting(m job.Model) {
	l.log.Info(fmt.Sprintf("Starting sheep `%s` with model `%s:%s`", l.Name, m.Name, m.Version), "model", m.String())
}

func (l *lane) logSlaughter(r *runner) {
	l.log.Info(fmt.Sprintf("Slaughtering sheep `%s`", l.Name), "model", r.model.String())
}

func (l *lane) logSending(a *attempt) {
	l.log.Info(fmt.Sprintf("Sending InputMessage for job `%s` on `%s`", a.ID, l.Name), "job", a.ID)
}

// logEnd logs the end of a job. own is set if the runner reported the failure itself.
func (l *lane) logEnd(a *attempt, own bool, failure *job.Failure) {
	switch {
	case failure == nil:
		l.log.Info(fmt.Sprintf("Job `%s` from sheep `%s` done", a.ID, l.Name), "job", a.ID, "model", a.Model.String())
	case own:
		l.log.Info(fmt.Sprintf("Job `%s` from sheep `%s` failed (%s)", a.ID, l.Name, failure.Message), "job", a.ID, "model", a.Model.String())
	default:
		l.log.Error(fmt.Sprintf("Sheep `%s` encountered error when processing job `%s`: %s", l.Name, a.ID, failure.Message), "job", a.ID, "model", a.Model.String())
	}
}
