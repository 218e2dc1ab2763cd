// Package day runs a real shepherdd with simulated GPUs and models, and fills it with a day's
// jobs: several models, failures, a queue, and a GPU that is out of service. The page's demo
// and its tests use it.
package day

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/gpu"
)

// Config configures a Day.
type Config struct {
	// Programs has shepherdd, shepherd-shim, shepherd-gpu (the stand-in) and page-runner.
	Programs string
	// Dir is for the daemon's state and files.
	Dir string
	// API is added to what is configured below api.
	API string
	// Storage is the configuration of the storage, each line indented; empty for the embedded
	// one.
	Storage string
	// Token, if not empty, is sent with every request.
	Token string
	// Quick makes models load and run at once.
	Quick bool
	// Pulls makes a sheep pull an image; see CanPull.
	Pulls bool
}

// Day is a daemon with sheep. Its methods are called from one goroutine.
type Day struct {
	// URL is the address of the API and the page.
	URL string

	cfg    Config
	port   string
	cmd    *exec.Cmd
	exited chan struct{}
	hold   string
	puller *puller
}

type model struct {
	name, kind, load, run, fail string
}

var models = []model{
	{name: "transcribe/large-v3", kind: "transcribe", load: "2s", run: "3s"},
	{name: "segment/v2", kind: "segment", load: "1s", run: "1500ms"},
	{name: "caption/v1", kind: "caption", load: "500ms", run: "800ms"},
	{name: "report/v4", kind: "report", load: "0s", run: "600ms"},
	{name: "train/nightly", kind: "train", load: "1s", run: "1s", fail: "CUDA out of memory: tried to allocate 22.50 GiB, 3.12 GiB free of 79.15 GiB"},
	{name: "hostile/<b>v1", kind: "hostile", load: "0s", run: "100ms"},
}

const general = `data_root: %[1]s/data
state_dir: %[1]s/state
drain_timeout: 0s
storage:
%[4]sapi:
  host: 127.0.0.1
  port: %[2]s
  socket: %[1]s/api.sock
%[3]sgpu:
  interval: 1s
  turn: 5s
  retest: 1h
sheep:
`

const embedded = "  listen: 127.0.0.1:0\n  access_key: day\n  secret_key: day-secret\n"

const bare = "  %s:\n    type: bare\n    port: %s\n    working_directory: %s/models\n    command: [%s/page-runner]\n%s"

// New writes the day's files.
func New(cfg Config) (*Day, error) {
	d := &Day{cfg: cfg, hold: filepath.Join(cfg.Dir, "go")}
	for _, m := range models {
		if cfg.Quick {
			m.load, m.run = "0s", "0s"
		}
		text := fmt.Sprintf("kind: %s\nload: %s\nrun: %s\nfail: %q\n", m.kind, m.load, m.run, m.fail)
		if err := write(filepath.Join(cfg.Dir, "models", m.name, "config.yaml"), text); err != nil {
			return nil, err
		}
	}
	inventory := gpu.Inventory{Driver: "550.54.15", CUDA: "12.4"}
	for i := range 4 {
		busy, watts, degrees, errors := []int{93, 71, 12, 0}[i], []float64{312, 240, 96, 41}[i], []int{71, 63, 44, 33}[i], uint64(0)
		g := gpu.GPU{Index: i, Minor: i, UUID: fmt.Sprintf("GPU-8932f937-d72c-4106-c12f-%012d", i), Name: "NVIDIA A100-SXM4-80GB", Memory: 80 << 30}
		g.Utilization, g.Power, g.Temperature, g.Uncorrectable = &busy, &watts, &degrees, &errors
		if i < 2 {
			g.Used = uint64(18+7*i) << 30
		}
		inventory.GPUs = append(inventory.GPUs, g)
	}
	text, err := json.Marshal(inventory)
	if err != nil {
		return nil, err
	}
	return d, errors.Join(write(filepath.Join(cfg.Dir, "gpus", "gpus.json"), string(text)), write(filepath.Join(cfg.Dir, "gpus", "xids"), ""))
}

// write makes a file and the directories that it is in.
func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// Start starts the daemon, at the address that it had before, if any, and returns when
// it serves.
func (d *Day) Start(ctx context.Context) error {
	if d.port == "" {
		d.port = "0"
	}
	text := fmt.Sprintf(general, d.cfg.Dir, d.port, d.cfg.API, cmp.Or(d.cfg.Storage, embedded))
	for _, sheep := range []struct{ name, settings string }{
		{"dolly", "    devices: [/dev/nvidia0]\n    shared: true\n    gpu_memory: 40GiB\n"}, {"shaun", "    devices: [/dev/nvidia0]\n    shared: true\n    gpu_memory: 38GiB\n"},
		{"timmy", "    devices: [/dev/nvidia1]\n"}, {"shirley", "    devices: [/dev/nvidia2]\n"}, {"bitzer", "    devices: [/dev/nvidia3]\n"}, {"nuts", ""},
	} {
		port, err := freePort()
		if err != nil {
			return err
		}
		text += fmt.Sprintf(bare, sheep.name, port, d.cfg.Dir, d.cfg.Programs, sheep.settings)
	}
	if d.cfg.Pulls {
		if d.puller == nil {
			var err error
			if d.puller, err = startPuller(ctx, d.cfg.Dir); err != nil {
				return err
			}
		}
		text += fmt.Sprintf("  flossie:\n    type: container\nregistry:\n  url: %s\ncontainerd:\n  address: %s\n", d.puller.url, d.puller.socket)
	}
	if err := write(d.config(), text); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(d.cfg.Dir, "shepherdd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	d.cmd = exec.Command(filepath.Join(d.cfg.Programs, "shepherdd"), "-c", d.config())
	d.cmd.Env = append(os.Environ(), "STANDIN_GPUS="+filepath.Join(d.cfg.Dir, "gpus"))
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must reach only the caller
	stderr, err := d.cmd.StderrPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start shepherdd: %w", err), log.Close())
	}
	served, exited := make(chan string, 1), make(chan struct{})
	d.exited = exited
	go func() {
		defer close(exited)
		defer log.Close()
		lines := bufio.NewScanner(io.TeeReader(stderr, log))
		for lines.Scan() {
			if _, at, ok := strings.Cut(lines.Text(), "Shepherd API is available at http"); ok {
				served <- "http" + strings.Fields(at)[0]
			}
		}
		_ = d.cmd.Wait() // how it ended is in its log
	}()
	select {
	case d.URL = <-served:
		d.port = d.URL[strings.LastIndexByte(d.URL, ':')+1:]
		return nil
	case <-exited:
		return fmt.Errorf("shepherdd has ended; its log is %s", log.Name())
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("shepherdd does not serve; its log is %s", log.Name()), d.Stop())
	}
}

func (d *Day) config() string { return filepath.Join(d.cfg.Dir, "shepherd.yml") }

// freePort is a port of a runner. Nothing keeps it free; a runner that finds it taken
// is started again with another.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// Stop stops the daemon, with its sheep, and waits until it has ended.
func (d *Day) Stop() error {
	err := d.signal(syscall.SIGTERM)
	if d.puller != nil {
		err = errors.Join(err, d.puller.stop())
		d.puller = nil
	}
	return err
}

// Kill kills the daemon; its sheep continue.
func (d *Day) Kill() error { return d.signal(syscall.SIGKILL) }

func (d *Day) signal(s syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.exited
	return nil
}

// Xid makes a GPU report an error.
func (d *Day) Xid(index, code int) error {
	f, err := os.OpenFile(filepath.Join(d.cfg.Dir, "gpus", "xids"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "GPU-8932f937-d72c-4106-c12f-%012d %d\n", index, code)
	return errors.Join(err, f.Close())
}

// Job is a submission; see POST /jobs.
type Job map[string]any

// Submit submits a job, with the files as its inputs where there are any.
func (d *Day) Submit(ctx context.Context, j Job, files map[string]string) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	body, contentType := bytes.NewBuffer(text), "application/json"
	if len(files) > 0 {
		body = new(bytes.Buffer)
		form := multipart.NewWriter(body)
		contentType = form.FormDataContentType()
		_ = form.WriteField("job", string(text)) // to memory
		for name, content := range files {
			part, err := form.CreateFormFile("file", name)
			if err != nil {
				return err
			}
			_, _ = io.WriteString(part, content)
		}
		if err := form.Close(); err != nil {
			return err
		}
	}
	answer, err := d.request(ctx, http.MethodPost, "/jobs", contentType, body)
	if err == nil && answer.status != http.StatusCreated {
		err = fmt.Errorf("submit %s: %d %s", text, answer.status, answer.body)
	}
	return err
}

type answer struct {
	status int
	body   []byte
}

func (d *Day) request(ctx context.Context, method, path, contentType string, body io.Reader) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, d.URL+path, body)
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Content-Type", contentType)
	if d.cfg.Token != "" {
		request.Header.Set("Authorization", "Bearer "+d.cfg.Token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, text}, err
}

// Until requests path until the answer contains text.
func (d *Day) Until(ctx context.Context, path, text string) error {
	for {
		got, err := d.request(ctx, http.MethodGet, path, "", nil)
		if err == nil && bytes.Contains(got.body, []byte(text)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("GET %s does not answer %q: %s %w", path, text, got.body, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Fill gives the daemon its day, and returns when jobs are under way, others wait, and
// others have ended. Jobs that are under way stay so until there is the file Hold.
func (d *Day) Fill(ctx context.Context) error {
	of := func(name string) map[string]any {
		n, v, _ := strings.Cut(name, "/")
		return map[string]any{"name": n, "version": v}
	}
	page := map[string]string{"scan.csv": "page,lines\n1,42\n2,37\n", "notes/readme.md": "Scanned at 300 dpi.\n"}
	var last string
	for i := range 6 {
		for _, m := range []string{"transcribe/large-v3", "segment/v2", "caption/v1", "report/v4"} {
			if m == "transcribe/large-v3" && i > 2 {
				continue
			}
			name, _, _ := strings.Cut(m, "/")
			last = fmt.Sprintf("%s-%04d", name, 1180+7*i)
			if err := d.Submit(ctx, Job{"job_id": last, "model": of(m), "labels": map[string]string{"batch": fmt.Sprint(40 + i/3), "by": "ada"}}, page); err != nil {
				return err
			}
		}
	}
	for _, j := range []Job{
		{"job_id": "train-0091", "model": of("train/nightly"), "payload": "epochs: 3\n", "retries": 1, "retry_pause": "100ms"},
		{"job_id": "hostile-b-img", "model": of("hostile/<b>v1"), "payload": "x", "labels": map[string]string{"key": `<script>alert("x")</script>`}},
		{"job_id": "report-missing", "model": of("report/v9"), "payload": "x"},
	} {
		if err := d.Submit(ctx, j, nil); err != nil {
			return err
		}
		if err := d.Until(ctx, "/jobs/"+j["job_id"].(string)+"/ready", "true"); err != nil {
			return err
		}
	}
	if err := d.Until(ctx, "/jobs?state=queued&state=processing", `"jobs": []`); err != nil {
		return err
	}
	// Running jobs, one for each sheep that can take one.
	if err := d.Xid(3, 79); err != nil { // it fell off the bus
		return err
	}
	if err := d.Until(ctx, "/gpus", `"health": "out"`); err != nil {
		return err
	}
	for _, one := range []struct{ sheep, model string }{{"dolly", "transcribe/large-v3"}, {"timmy", "segment/v2"}, {"shirley", "caption/v1"}} {
		name, _, _ := strings.Cut(one.model, "/")
		if err := d.Submit(ctx, Job{"job_id": name + "-2001", "model": of(one.model), "sheep_id": one.sheep, "payload": "hold " + d.hold, "labels": map[string]string{"batch": "42"}}, nil); err != nil {
			return err
		}
		if err := d.Until(ctx, "/jobs/"+name+"-2001", `"done": 0.43`); err != nil {
			return err
		}
	}
	for i, one := range []struct {
		model, sheep string
		priority     int
	}{{"transcribe/large-v3", "dolly", 0}, {"transcribe/large-v3", "dolly", 0}, {"segment/v2", "timmy", 5}, {"caption/v1", "bitzer", 0}, {"segment/v2", "timmy", 0}} {
		name, _, _ := strings.Cut(one.model, "/")
		if err := d.Submit(ctx, Job{"job_id": fmt.Sprintf("%s-%04d", name, 2010+i), "model": of(one.model), "sheep_id": one.sheep, "priority": one.priority, "payload": "x", "labels": map[string]string{"batch": "42"}}, nil); err != nil {
			return err
		}
	}
	if d.cfg.Pulls {
		if err := d.Submit(ctx, Job{"job_id": "align-2020", "model": of("align/v3"), "sheep_id": "flossie", "payload": "x", "labels": map[string]string{"batch": "43"}}, nil); err != nil {
			return err
		}
		if err := d.Until(ctx, "/jobs/align-2020", "KiB/s"); err != nil {
			return err
		}
	}
	if err := d.Submit(ctx, Job{"job_id": "report-tonight", "model": of("report/v4"), "payload": "x", "not_before": time.Now().Add(7 * time.Hour).UTC().Format(time.RFC3339)}, nil); err != nil {
		return err
	}
	for _, id := range []string{"report-cancelled"} {
		if err := d.Submit(ctx, Job{"job_id": id, "model": of("report/v4"), "payload": "x", "not_before": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}, nil); err != nil {
			return err
		}
		if _, err := d.request(ctx, http.MethodPost, "/jobs/"+id+"/cancel", "", nil); err != nil {
			return err
		}
	}
	return nil
}

// Hold is the file that the jobs wait for that Fill leaves under way.
func (d *Day) Hold() string { return d.hold }
