package e2e

import (
	"bufio"
	"fmt"
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
	expect(true, `\nwaiting +queued +echo:v1 +sheep +0 (.|\n)*\nrunning +processing +echo:v1 +sheep +0 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +-\nfailing +failed`, "ls")
	expect(true, `\nfailing +failed .*ValueError`, "ls", "--all")
	expect(true, `^running\nwaiting\n$`, "ls", "--active", "--oldest", "-o", "name")
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

// A job's progress and log are seen while it runs and after its end, by the API and by
// `shepherdd jobs logs -f`, which ends with the job; also across a restart of the
// daemon. The sheep's own model is up before the first job.
func TestJobLogsAndProgress(t *testing.T) {
	w := emptyWorld(t, "sheep")
	w.edit("    type: bare\n", fmt.Sprintf("    type: bare\n    preload: tool:v1\n    command: [%q, \"-p\", \"{port}\", \"{config}\"]\n", programs+"/shepherd-runner"))
	gate := w.dir + "/gate"
	write(t, w.dir+"/models/tool/v1/config.yaml", fmt.Sprintf(
		"command: [sh, -c, 'echo line of {job}; echo \"::progress 40%% halfway\"; until [ -e %s ]; do sleep 0.05; done; echo last of {job}; cp {inputs}/input {outputs}/output']\n", gate))
	w.start()
	w.eventually("the model is up", func() bool {
		_, text := w.request("GET", "/sheep", "")
		return strings.Contains(text, `"running": true`) && strings.Contains(text, `"name": "tool"`)
	})
	w.submit("job-1", "tool:v1", "x")
	w.eventually("the progress is seen", func() bool {
		_, text := w.request("GET", "/jobs/job-1", "")
		return strings.Contains(text, `"done": 0.4`) && strings.Contains(text, `"text": "halfway"`) && strings.Contains(text, `"detail": "40 %: halfway"`)
	})
	log := ""
	w.eventually("the log has the job's line", func() bool { // by another way than the progress
		_, log = w.request("GET", "/jobs/job-1/logs", "")
		return strings.Contains(log, "line of job-1\n")
	})
	if strings.Contains(log, "::progress") {
		t.Errorf("the log so far: %q", log)
	}
	follow := exec.Command(programs+"/shepherdd", "jobs", "logs", "-f", "-c", w.config, "job-1")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "line of job-1" {
	}
	write(t, gate, "")
	rest := ""
	for lines.Scan() {
		rest += lines.Text() + "\n"
	}
	if err := follow.Wait(); err != nil || !strings.Contains(rest, "last of job-1\n") {
		t.Errorf("then came %q, %v", rest, err)
	}
	w.expectDone("job-1", "x")
	w.submit("job-2", "tool:v1", "y")
	w.expectDone("job-2", "y")
	w.stop()
	w.start()
	for _, id := range []string{"job-1", "job-2"} {
		_, text := w.request("GET", "/jobs/"+id+"/logs", "")
		if strings.Count(text, "line of") != 1 || !strings.Contains(text, "line of "+id+"\n") || !strings.Contains(text, "last of "+id+"\n") {
			t.Errorf("the log of %s is %q", id, text)
		}
		if _, text := w.request("GET", "/jobs/"+id, ""); !strings.Contains(text, `"progress": null`) {
			t.Errorf("%s", text)
		}
	}
	if code, text := w.request("GET", "/jobs/nobody/logs", ""); code != 404 || !strings.Contains(text, "does not exist") {
		t.Errorf("%d %s", code, text)
	}
}
