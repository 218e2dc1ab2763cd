package e2e

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// shepherdd jobs lists, shows and cancels the jobs of the daemon that is up.
func TestJobsCommand(t *testing.T) {
	w := newWorld(t, "sheep")
	w.start()
	gate := w.dir + "/gate"
	jobs := func(args ...string) (string, error) {
		out, err := exec.Command(programs+"/shepherdd", append([]string{"jobs", args[0], "-c", w.config}, args[1:]...)...).CombinedOutput()
		return string(out), err
	}
	expect := func(ok bool, pattern string, args ...string) {
		t.Helper()
		out, err := jobs(args...)
		if (err == nil) != ok || !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("jobs %v: %v\n%s\nwant %s", args, err, out, pattern)
		}
	}
	expect(true, `^JOB +STATE +MODEL +SHEEP +PRIORITY +SUBMITTED +DETAIL\n$`, "ls")
	w.submit("failing", "echo:v1", "fail")
	w.await("failing")
	w.submit("running", "echo:v1", "wait "+gate)
	w.eventually("the job runs", func() bool { return w.status("running").Status == "processing" })
	w.submit("waiting", "echo:v1", "x", "sheep_id", "sheep")
	expect(true, `\nrunning +processing +echo:v1 +sheep +0 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +-\nwaiting +queued +echo:v1 +sheep +0 `, "ls")
	expect(true, `\nfailing +failed .*ValueError`, "ls", "--all")
	expect(true, `^JOB[^\n]*\nwaiting [^\n]*\n$`, "ls", "--state", "queued")
	expect(true, `^JOB[^\n]*\n$`, "ls", "--model", "echo:v2")
	expect(true, `"job_id": "waiting"(.|\n)*"sheep_id": "sheep"`, "show", "waiting")
	expect(false, "Data for job `nobody` does not exist", "show", "nobody")
	expect(true, `^waiting is cancelled\n$`, "cancel", "waiting")
	expect(false, `cancel job failing: the job has ended already`, "cancel", "failing")
	expect(false, `"gone" is none of queued`, "ls", "--state", "gone")
	expect(false, `the id of a job is needed`, "show")
	write(t, gate, "")
	w.await("running")
	w.kill()
	if out, err := jobs("ls"); err == nil || !strings.Contains(out, "no daemon is running with this configuration") {
		t.Errorf("without a daemon: %v\n%s", err, out)
	}
}
