package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
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
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/doctor"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/internal/libexec"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/runtime/bare"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage/s3"
	"github.com/iterait/shepherd/webhook"
)

const logOfDaemon = "look at its log (journalctl -u shepherdd)"

// packagedConfig is the configuration of the packaged service.
const packagedConfig = "/etc/shepherd/shepherd.yml"

func doctorCommand() *cobra.Command {
	var file string
	var asJSON, strict bool
	var form remote.Format
	c := &cobra.Command{
		Use:   "doctor [-c FILE]",
		Short: "Check the machine, and say what is wrong and what to do",
		Long: "Checks what the daemon needs with this configuration: containerd, runc, control\n" +
			"groups, GPUs, storage, registry, ledger, disks, clock and more. It changes nothing,\n" +
			"and the daemon may be running. Each line is ok, a warning or a failure; a failure\n" +
			"prevents jobs from running, and makes the exit status 1.\n\n" +
			"Run it as the user that the daemon runs as, with the same environment.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("unexpected argument %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = packagedConfig
				if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
					return noConfig()
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if asJSON {
				form = remote.FormJSON
			}
			return examine(ctx, file, form, strict, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default: that of the service)")
	form.Add(c.Flags())
	c.Flags().Lookup("output").Usage = "format: table, wide, name (of the checks with findings), json or jsonl (one object per line)"
	c.Flags().BoolVar(&asJSON, "json", false, "write JSON, as -o json does")
	c.Flags().BoolVar(&strict, "strict", false, "make the exit status 1 for warnings, too")
	return c
}

// examine runs the checks for a configuration file.
func examine(ctx context.Context, file string, form remote.Format, strict bool, out io.Writer) error {
	var diagnosis doctor.Diagnosis
	var broken error
	var named []string // checks
	report := func(f doctor.Finding) {
		diagnosis.Add(f)
		switch form {
		case remote.FormJSON:
		case remote.FormLines:
			broken = cmp.Or(broken, remote.PrintJSON(out, f, false))
		case remote.FormName:
			if f.Level != doctor.OK && !slices.Contains(named, f.Check) {
				named = append(named, f.Check)
				_, err := fmt.Fprintln(out, f.Check)
				broken = cmp.Or(broken, err)
			}
		default:
			broken = cmp.Or(broken, f.WriteLine(out))
		}
	}
	cfg, err := daemon.LoadConfig(file)
	reportConfig(file, err, report)
	if err == nil {
		doctor.Examine(ctx, append(checksOf(cfg), secretsOf(file, cfg)), report)
	}
	if form == remote.FormJSON {
		broken = diagnosis.WriteJSON(out)
	}
	switch {
	case broken != nil:
		return broken
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case diagnosis.Failures > 0 || strict && diagnosis.Warnings > 0:
		return fmt.Errorf("%d failures, %d warnings", diagnosis.Failures, diagnosis.Warnings)
	}
	return nil
}

// reportConfig reports whether the configuration is valid, which the other checks need.
func reportConfig(file string, err error, report func(doctor.Finding)) {
	f := doctor.Finding{Check: "config", Level: doctor.OK, Message: file}
	if err == nil {
		report(f)
		return
	}
	f.Level, f.Next = doctor.Failure, "correct it; all keys are in shepherd.yml(5) and docs/configuration.md"
	var problems config.Problems
	if !errors.As(err, &problems) {
		f.Message, f.Next = errtext.Of(err), "name the file that the daemon is started with, as a user who may read it"
		report(f)
		return
	}
	for _, p := range problems {
		f.Message = p.Error()
		report(f)
	}
}

// checksOf returns the checks for a configuration.
func checksOf(cfg *config.Config) []doctor.Check {
	up, err := daemon.Running(cfg.StateDir)
	up = up && err == nil
	var list []doctor.Check
	if up {
		list = append(list, doctor.Probe{Title: "daemon", Success: "up, and ready", Next: logOfDaemon, Ask: func(ctx context.Context) error { return askDaemon(ctx, cfg) }})
	}
	listeners := doctor.Listeners{Host: cfg.API.Host, Port: cfg.API.Port, Up: up, Guarded: cfg.API.RequiresCredentials(), AllOrigins: slices.Contains(cfg.API.CORSOrigins, "*"), Others: map[string]string{}}
	if cfg.Storage.Embedded() {
		listeners.Others["storage.listen"] = cfg.Storage.Listen
	}
	list = append(list, listeners)
	list = append(list, sheepChecks(cfg)...)
	list = append(list, doctor.Cgroups{Root: "/sys/fs/cgroup"})

	clock := doctor.Clock{Client: &http.Client{Timeout: 10 * time.Second}}
	if !cfg.Storage.Embedded() {
		address, tls := cfg.Storage.Endpoint()
		clock.Storage = "http://" + address
		if tls {
			clock.Storage = "https://" + address
		}
	}
	if up || !cfg.Storage.Embedded() {
		list = append(list, doctor.Probe{Title: "storage", Success: storageName(cfg) + " answers and lets us in", Next: "check storage.url, and whether storage is up", Ask: func(ctx context.Context) error { return pingStorage(ctx, cfg) }})
	}
	if r := cfg.Registry; r != nil {
		list = append(list, doctor.Probe{Title: "registry", Success: r.URL + " answers and lets us in", Next: "check registry.url, and whether the registry is up", Ask: daemon.RegistryOf(cfg).Ping})
	}
	list = append(list, webhookChecks(cfg)...)
	if unit := filepath.Base(cfg.StateDir); filepath.Dir(cfg.StateDir) == "/var/lib" && (unit == "shepherd" || strings.HasPrefix(unit, "shepherd-")) {
		list = append(list, doctor.StateOwner{Path: cfg.StateDir}) // of the packaged units, which run as root
	}
	disks := map[string]string{"data_root": cfg.DataRoot, "state_dir": cfg.StateDir}
	if !cfg.Ledger.Shared() {
		disks["ledger"] = filepath.Dir(cfg.Ledger.Path)
	}
	if cfg.Storage.Embedded() {
		disks["storage"] = cfg.Storage.Path
	}
	var names []string
	for _, s := range cfg.Sheep {
		names = append(names, s.Name)
	}
	return append(list,
		ledgerCheck(cfg),
		doctor.Disks{Paths: disks}, clock, doctor.Limits{Sheep: len(cfg.Sheep)},
		doctor.Leftovers{
			Sheep:    names,
			DataRoot: cfg.DataRoot, Mark: shepherd.MarkFile,
			StateDirs: []string{filepath.Join(cfg.StateDir, "sheep"), filepath.Join(cfg.StateDir, "containers")},
			Known:     []string{cfg.StateDir, cfg.Storage.Path},
		})
}

// ledgerCheck returns the check of the SQLite file or of the PostgreSQL database.
func ledgerCheck(cfg *config.Config) doctor.Check {
	if cfg.Ledger.Shared() {
		return doctor.Probe{
			Title: "ledger", Success: cfg.Ledger.URL.String() + " answers and lets us in", Next: "check ledger.url, and whether the database is up",
			Ask: func(ctx context.Context) error {
				err := postgres.Read(ctx, daemon.DatabaseConfig(cfg), func(r *postgres.Reader) error {
					_, err := r.Count(ctx)
					return err
				})
				if errdefs.IsNotFound(err) { // it is made when shepherdd first starts
					return nil
				}
				return err
			},
		}
	}
	return doctor.Ledger{Path: cfg.Ledger.Path, Inspect: func(ctx context.Context) (int, time.Time, error) {
		found, err := sqlite.Inspect(ctx, cfg.Ledger.Path)
		return found.Jobs, found.LastChange, err
	}}
}

// webhookChecks returns the checks of what is told of jobs.
func webhookChecks(cfg *config.Config) []doctor.Check {
	w := cfg.Webhooks
	files := map[string]string{}
	if w.SecretFile != "" {
		files["webhooks.secret_file"] = w.SecretFile
	}
	var list []doctor.Check
	for i, r := range w.Receivers {
		files[fmt.Sprintf("webhooks.receivers[%d].secret_file", i)] = r.SecretFile
		list = append(list, doctor.Probe{
			Title: "webhooks", WarnOnly: true, Success: "receiver " + r.Name + " can be reached", Next: "check its url, and whether it is up; messages are tried for a day",
			Ask: func(ctx context.Context) error {
				if err := webhook.Reach(ctx, r.URL, w.AllowedNetworks()); err != nil {
					return fmt.Errorf("receiver %s: %w", r.Name, err)
				}
				return nil
			},
		})
	}
	if len(files) == 0 {
		return nil
	}
	return append([]doctor.Check{doctor.Probe{
		Title: "webhooks", Success: "their secrets can be read", Next: "put a secret into it: whsec_ and 32 random bytes in base64 (docs/webhooks.md)",
		Ask: func(context.Context) error {
			for _, key := range slices.Sorted(maps.Keys(files)) {
				text, err := os.ReadFile(files[key])
				if err == nil {
					_, err = webhook.ParseSecrets(string(text))
				}
				if err != nil {
					return fmt.Errorf("%s %s: %w", key, files[key], err)
				}
			}
			return nil
		},
	}}, list...)
}

// secretsOf checks the files of a configuration that hold secrets.
func secretsOf(file string, cfg *config.Config) doctor.Secrets {
	s := doctor.Secrets{Files: []string{cfg.Storage.SecretKeyFile, cfg.Ledger.PasswordFile}, Dirs: []string{cfg.StateDir}}
	if !cfg.Ledger.Shared() {
		s.Dirs = append(s.Dirs, filepath.Dir(cfg.Ledger.Path))
	}
	if !cfg.Storage.SecretKey.IsZero() || cfg.Ledger.HoldsPassword() || cfg.Registry != nil && !cfg.Registry.Password.IsZero() {
		s.Files = append(s.Files, file)
		if dropIns, err := config.DropIns(file); err == nil {
			s.Files = append(s.Files, dropIns...)
		}
	}
	if cfg.Registry != nil {
		s.Files = append(s.Files, cfg.Registry.PasswordFile, cfg.Registry.DockerConfig)
	}
	if cfg.API.TLS != nil {
		s.Files = append(s.Files, cfg.API.TLS.KeyFile)
	}
	s.Files = append(s.Files, cfg.Webhooks.SecretFile)
	for _, r := range cfg.Webhooks.Receivers {
		s.Files = append(s.Files, r.SecretFile)
	}
	for _, t := range cfg.API.Tokens {
		s.Files = append(s.Files, t.TokenFile)
	}
	if cfg.Storage.Embedded() {
		s.Dirs = append(s.Dirs, cfg.Storage.Path)
	}
	s.Files = slices.DeleteFunc(s.Files, func(path string) bool { return path == "" })
	return s
}

// sheepChecks returns the checks of what runs sheep.
func sheepChecks(cfg *config.Config) []doctor.Check {
	programs := map[string]string{}
	snapshotters := map[string]bool{}
	gpus := doctor.GPUs{Mode: cfg.GPU.Mode, CDIDirs: cfg.GPU.CDIDirs, Inventory: gpu.NewHelper(gpu.HelperConfig{}).Inventory}
	for _, r := range cfg.Requests() {
		if !r.Devices.Empty() {
			gpus.Requests = append(gpus.Requests, r)
		}
	}
	containers := false
	for _, s := range cfg.Sheep {
		switch daemon.SheepType(s.Type) {
		case "docker":
			var o container.Options
			if s.Decode(&o) != nil {
				continue // its own check has accepted it; what it lacks here is not asked for
			}
			containers = true
			snapshotters[cmp.Or(o.Snapshotter, cfg.Containerd.Snapshotter)] = true
			if program, brought := runtimeProgram(o.Runtime); program != "" {
				programs[program] = brought
			}
			gpus.Containers = gpus.Containers || !s.Devices.Empty()
		case "bare":
			var o bare.Options
			if s.Decode(&o) == nil && len(o.Command) == 0 {
				name := "shepherd-runner"
				if _, err := exec.LookPath(name); err != nil {
					if installed, err := libexec.Find(name, ""); err == nil {
						name = installed
					}
				}
				programs[name] = "install it: the Debian package and the tarball have it; or name the sheep's own command"
			}
		}
	}
	list := []doctor.Check{doctor.Probe{Title: "shim", Success: "installed", Next: "install it: the Debian package and the tarball have it", Ask: func(context.Context) error {
		_, err := libexec.Find("shepherd-shim", "")
		return err
	}}}
	if len(programs) > 0 {
		list = append(list, doctor.Programs{Title: "programs", Needed: programs})
	}
	if containers {
		used := make([]string, 0, len(snapshotters))
		for name := range snapshotters {
			used = append(used, name)
		}
		slices.Sort(used)
		list = append(list, doctor.Kernel{}, doctor.Containerd{Address: cfg.Containerd.Address, Namespace: cfg.Containerd.Namespace, Snapshotters: used})
	}
	return append(list, gpus)
}

// runtimeProgram returns the program of a container sheep's runtime, and how to
// install it.
func runtimeProgram(runtime string) (program, brought string) {
	switch {
	case runtime == "" || runtime == "runc":
		return "runc", "install it (apt-get install runc)"
	case runtime == "gvisor" || runtime == "runsc":
		return "containerd-shim-runsc-v1", "install gVisor (runsc and its containerd shim)"
	case runtime == "nvidia":
		return "nvidia-container-runtime", "install nvidia-container-toolkit, or use runtime: runc with devices"
	case strings.HasPrefix(runtime, "io."):
		return "", ""
	}
	return runtime, "install it, or choose another runtime for the sheep"
}

// askDaemon returns an error with the reasons where the daemon is not ready.
func askDaemon(ctx context.Context, cfg *config.Config) error {
	at, err := daemon.Address(cfg.StateDir)
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Server: at, DialSocket: access.Dial})
	if err != nil {
		return err
	}
	defer c.CloseIdle()
	said, err := c.GetReadinessWithResponse(ctx)
	var answer client.Readiness
	var status *client.StatusError
	switch {
	case errors.As(err, &status): // it says what it is not ready for
		if err := json.Unmarshal(status.Body, &answer); err != nil || len(answer.Checks) == 0 {
			return fmt.Errorf("the server at %s is not a shepherd of this version: %w", at, status)
		}
	case err != nil:
		return fmt.Errorf("shepherdd is up and does not answer: %w", err)
	case said.JSON200 == nil:
		return fmt.Errorf("the server at %s is not a shepherd of this version", at)
	default:
		answer = *said.JSON200
	}
	var wrong []string
	for name, check := range answer.Checks {
		if !check.Ready {
			wrong = append(wrong, name+" ("+*check.Message+")")
		}
	}
	if slices.Sort(wrong); len(wrong) > 0 {
		return fmt.Errorf("shepherdd is up and not ready: %s", strings.Join(wrong, ", "))
	}
	return nil
}

func storageName(cfg *config.Config) string {
	if cfg.Storage.Embedded() {
		return "the embedded storage at " + cfg.Storage.Listen
	}
	return cfg.Storage.URL
}

// pingStorage connects to the storage as the daemon would.
func pingStorage(ctx context.Context, cfg *config.Config) error {
	c := cfg.Storage
	url := c.URL
	if c.Embedded() {
		url = "http://" + c.Listen
	}
	access, secret, err := daemon.StorageKeys(c)
	if err != nil {
		return err
	}
	store, err := s3.New(s3.Config{
		URL: url, AccessKey: access, SecretKey: secret, SessionToken: c.SessionToken.Reveal(), CAFile: c.CAFile, Addressing: c.Addressing,
		Bucket: c.Bucket, Region: c.Region, Direct: c.Embedded(),
	})
	if err != nil {
		return err
	}
	defer store.Close()
	return store.Ping(ctx)
}
