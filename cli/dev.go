package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
)

// trial is one run of a model without anything installed.
type trial struct {
	model      string // a directory with a config.yaml, or an image with its registry
	inputs     []string
	out        string
	devices    []string
	keep       bool
	verbose    bool
	plainHTTP  bool
	containerd string // the path of its socket; empty for the default
	build      Build
}

func devCommand(b Build) *cobra.Command {
	t := trial{build: b}
	c := &cobra.Command{
		Use:   "dev MODEL_DIR|IMAGE [-- INPUT…]",
		Short: "Try a model: run one job with it, without a daemon, storage or configuration",
		Long: "Runs one job with a model in a temporary daemon with embedded storage and ledger, by\n" +
			"the same code as in production. The model is a directory with a config.yaml, or an\n" +
			"image with its registry, REGISTRY/NAME:VERSION, which needs containerd. Inputs are\n" +
			"named as for `submit`. The runner's log is printed on standard output, progress on\n" +
			"standard error; the outputs are written to a directory, whose path is printed. The\n" +
			"exit code says how the job ended.",
		Example: "  shepherd dev models/digits/v1 -- page.png\n  shepherd dev registry.example.com/digits:v1 -o results -- pages/",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{errors.New("a model is needed: a directory with a config.yaml, or an image")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t.model, t.inputs = args[0], args[1:]
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := t.run(ctx, cmd); err != nil && ctx.Err() == nil {
				return err
			} else if err != nil {
				return &remote.Error{Code: remote.ExitInterrupted}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&t.out, "out", "o", "", "directory for the outputs (default: a new temporary one)")
	f.StringSliceVar(&t.devices, "devices", nil, "GPUs that the model may use: /dev/nvidia0, a CDI name, or all")
	f.BoolVar(&t.keep, "keep", false, "keep the temporary directory, and print its path")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "show the daemon's log, too")
	f.StringVar(&t.containerd, "containerd", os.Getenv("CONTAINERD_ADDRESS"), "path of containerd's socket, for an image ($CONTAINERD_ADDRESS)")
	f.BoolVar(&t.plainHTTP, "plain-http", false, "use HTTP for the image's registry, as always for one on localhost")
	return c
}

// trialModel is the name that jobs have for the model of a directory.
const trialModel = "model"

// registryWait bounds how long the registry may take to answer at all.
const registryWait = 10 * time.Second

// stopWait bounds how long the daemon of a trial may take to stop.
const stopWait = "1s"

// place is the model as jobs name it, and the sheep that runs it.
func (t *trial) place(dir string) (job.Model, map[string]any, error) {
	sheep := map[string]any{}
	switch {
	case len(t.devices) == 1 && t.devices[0] == "all":
		sheep["devices"] = "all"
	case len(t.devices) > 0:
		sheep["devices"] = t.devices
	}
	settings := map[string]any{
		"data_root":     filepath.Join(dir, "data"),
		"state_dir":     filepath.Join(dir, "state"),
		"storage":       map[string]any{"listen": "127.0.0.1:0"},
		"api":           map[string]any{"host": "127.0.0.1", "port": 0, "cors_origins": []string{}},
		"drain_timeout": stopWait,
		"on_exit":       "stop",
		"sheep":         map[string]any{"dev": sheep},
	}
	if info, err := os.Stat(t.model); err == nil && info.IsDir() {
		if _, err := os.Stat(filepath.Join(t.model, "config.yaml")); err != nil {
			return job.Model{}, nil, fmt.Errorf("%s is not a model: %w", t.model, err)
		}
		sheep["type"], sheep["working_directory"] = "bare", filepath.Join(dir, "models")
		return job.Model{Name: trialModel, Version: "dev"}, settings, nil
	}
	registry, name, ok := strings.Cut(t.model, "/")
	host, _, _ := strings.Cut(registry, ":")
	if !ok || strings.Trim(host, ".") == "" || name == "" || !strings.ContainsAny(registry, ".:") && registry != "localhost" {
		return job.Model{}, nil, &usageError{fmt.Errorf("%s is neither a directory nor an image with its registry, such as registry.example.com/NAME:VERSION", t.model)}
	}
	scheme := "https://"
	if t.plainHTTP || host == "localhost" || strings.HasPrefix(host, "127.") {
		scheme = "http://"
	}
	sheep["type"] = "container"
	from := map[string]any{"url": scheme + registry}
	if credentials := dockerConfig(); credentials != "" {
		from["docker_config"] = credentials
	}
	settings["registry"] = from
	if t.containerd != "" {
		address, err := filepath.Abs(strings.TrimPrefix(t.containerd, "unix://"))
		if err != nil {
			return job.Model{}, nil, err
		}
		settings["containerd"] = map[string]any{"address": address}
	}
	return job.ParseModel(name), settings, nil
}

// dockerConfig is where `docker login` keeps the user's credentials; empty if there are none.
func dockerConfig() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	file, err := filepath.Abs(filepath.Join(dir, "config.json"))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

// wording rewrites messages for people who have a command line and no configuration: the
// model has their name of it, and what the daemon would have them configure is a flag.
func (t *trial) wording(dir string) *strings.Replacer {
	return strings.NewReplacer(
		filepath.Join(dir, "models", trialModel, "dev"), filepath.Clean(t.model),
		"set containerd.address to containerd's socket", "name containerd's with --containerd",
		"set containerd.address", "name its socket with --containerd",
		"containerd.address", "--containerd",
		"set registry.username and registry.password, or registry.docker_config", "give them to `docker login`, which keeps them in ~/.docker/config.json",
		"check registry.username and registry.password", "check what `docker login` keeps for it",
		"registry.docker_config", "docker's configuration",
		"set registry.ca_file to the authority's certificate", "add the authority's certificate to those of this machine, or name its file in $SSL_CERT_FILE",
		"write http:// in registry.url", "give --plain-http",
		"if it speaks TLS, write https:// in registry.url", "leave --plain-http out if it speaks TLS",
		"check registry.url and whether it is up", "check its name, and whether it is up",
		"run shepherdd as root", "run this as root",
	)
}

// rewriter writes lines in other words. Each Write is of whole lines.
type rewriter struct {
	to    io.Writer
	words *strings.Replacer
}

func (r rewriter) Write(p []byte) (int, error) {
	_, err := r.words.WriteString(r.to, string(p))
	return len(p), err
}

// check looks for what would keep the daemon or every job from starting: mistakes in the
// configuration, which are the flags', a containerd that does not answer, and a registry that
// does not where the image is not here. Who waits is told what for; a daemon asks a registry
// for much longer, in case it is only being restarted.
func (t *trial) check(ctx context.Context, file string, model job.Model, words *strings.Replacer, to io.Writer) error {
	cfg, err := daemon.LoadConfig(file)
	var problems config.Problems
	if errors.As(err, &problems) {
		p := problems[0]
		return &usageError{fmt.Errorf("%s cannot be tried with these flags: %s: %s", t.model, p.Path, p.Text)}
	}
	if err != nil || cfg.Registry == nil {
		return err
	}
	c, err := image.Connect(ctx, cfg.Containerd.Address, cfg.Containerd.Namespace, nil)
	if err != nil {
		return errors.New(words.Replace(err.Error()))
	}
	defer c.Close()
	registry := daemon.RegistryOf(cfg)
	reference, err := registry.Reference(model)
	if err != nil {
		return &usageError{fmt.Errorf("%s names no image: %w", t.model, err)}
	}
	if _, err := c.ImageService().Get(ctx, reference); err == nil {
		return nil // it may be used although its registry is away
	}
	fmt.Fprintf(to, "Asking the registry for %s\n", reference)
	ctx, stop := context.WithTimeoutCause(ctx, registryWait, fmt.Errorf("it has not answered within %s; check its name, and whether it is up", job.FormatDuration(registryWait)))
	defer stop()
	if err := registry.Ping(ctx); errdefs.IsUnavailable(err) || err != nil && ctx.Err() != nil {
		return errors.New(words.Replace(errtext.Of(err)))
	}
	return nil // what else it says is about itself; of the image the pull will hear
}

// prepare writes the daemon's configuration below a directory, and puts the model of a
// directory where the sheep looks for it.
func (t *trial) prepare(dir string) (model job.Model, configFile string, err error) {
	model, settings, err := t.place(dir)
	if err != nil {
		return job.Model{}, "", err
	}
	if _, image := settings["registry"]; !image {
		at, err := filepath.Abs(t.model)
		if err != nil {
			return job.Model{}, "", err
		}
		link := filepath.Join(dir, "models", model.Name, model.Version)
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			return job.Model{}, "", err
		}
		if err := os.Symlink(at, link); err != nil {
			return job.Model{}, "", err
		}
	}
	text, err := json.Marshal(settings) // JSON is YAML, and its strings hold no references
	if err != nil {
		return job.Model{}, "", err
	}
	configFile = filepath.Join(dir, "shepherd.yml")
	return model, configFile, os.WriteFile(configFile, text, 0o600)
}

// run runs the daemon, and the job on it.
func (t *trial) run(ctx context.Context, cmd *cobra.Command) (err error) {
	if err := remote.CheckInputs(t.inputs); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "shepherd-dev-")
	if err != nil {
		return err
	}
	defer func() {
		if t.keep {
			fmt.Fprintln(cmd.ErrOrStderr(), "Everything is kept in", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	model, file, err := t.prepare(dir)
	if err != nil {
		return err
	}
	words := t.wording(dir)
	if err := t.check(ctx, file, model, words, cmd.ErrOrStderr()); err != nil {
		return err
	}
	logTo := cmd.ErrOrStderr()
	cmd.SetErr(rewriter{logTo, words})
	if t.out == "" {
		if t.out, err = os.MkdirTemp("", "shepherd-outputs-"); err != nil {
			return err
		}
	}
	log, err := os.Create(filepath.Join(dir, "shepherd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	if !t.verbose {
		logTo = log
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	stopped := make(chan error, 1)
	go func() {
		stopped <- daemon.Run(running, daemon.Options{ConfigFile: file, Version: t.build.Version, Commit: t.build.Commit}, logTo)
	}()
	at, err := awaitAPI(ctx, filepath.Join(dir, "state"), stopped)
	if err == nil {
		err = t.runJob(ctx, cmd, at, model)
	}
	stop()
	if failed := <-stopped; failed != nil {
		if !t.verbose {
			if text, readErr := os.ReadFile(log.Name()); readErr == nil {
				_, _ = cmd.ErrOrStderr().Write(text)
			}
		}
		err = errors.Join(failed, err)
	}
	return err
}

func (t *trial) runJob(ctx context.Context, cmd *cobra.Command, at string, model job.Model) error {
	c, err := client.New(client.Config{Server: at, DialSocket: access.Dial})
	if err != nil {
		return err
	}
	defer c.CloseIdle()
	return remote.Hint(remote.Try(ctx, cmd, c, model, t.inputs, t.out))
}

// awaitAPI waits until the daemon has opened its API, and returns the address. Where
// the daemon ends first, its error stays in stopped, for who waits for its end.
func awaitAPI(ctx context.Context, state string, stopped chan error) (string, error) {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		if at, err := daemon.Address(state); err == nil {
			return at, nil
		}
		select {
		case <-look.C:
		case err := <-stopped:
			stopped <- err
			return "", errors.New("the daemon has not started")
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
