// Package config reads shepherd's configuration file: YAML in, a typed Config
// with every default filled in out, or everything that is wrong with the file
// at once, each with line and column.
//
// # How a file is read
//
//	text ─► compose ─► tree of nodes ─► decode ─► Config ─► check ─► Config
//	        YAML, aliases,              strictly,            meaning: paths,
//	        references to the           by yaml tags         ports, names,
//	        environment                                      the sheep types
//
// Every step goes on after an error and collects Problems. No step prints a
// Secret; of values that came from the environment, paths at most are shown.
// Reading changes nothing on the machine: no directory is made, no port opened.
//
// What each key means, and its default, is written in docs/configuration.md.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// Config is a configuration that has been checked, with all defaults in place.
type Config struct {
	// DataRoot is where sheep keep the files of the jobs they run: each sheep
	// in its own directory, see Sheep.Dir. Working directories of jobs in them are
	// removed at start-up.
	DataRoot string `yaml:"data_root"`
	// StateDir holds what has to survive a restart. It never lies in a
	// directory that is cleaned.
	StateDir string `yaml:"state_dir"`
	// MinFree is how much of the disks of DataRoot and StateDir stays free: while
	// less is, no job is taken and no inputs are fetched.
	MinFree size.Bytes `yaml:"min_free"`
	// Node is this daemon's name among others that share a ledger.
	Node string `yaml:"node"`

	API        API        `yaml:"api"`
	Registry   *Registry  `yaml:"registry,omitempty"` // nil when there is none
	Models     Models     `yaml:"models,omitempty"`
	Containerd Containerd `yaml:"containerd"`
	Storage    Storage    `yaml:"storage"`
	Ledger     Ledger     `yaml:"ledger"`
	Fleet      Fleet      `yaml:"fleet,omitempty"`
	Webhooks   Webhooks   `yaml:"webhooks,omitempty"`
	Logging    Logging    `yaml:"logging"`
	Scheduling Scheduling `yaml:"scheduling"`
	Limits     Limits     `yaml:"limits"`
	GPU        GPU        `yaml:"gpu"`

	// DrainTimeout is how long running jobs may take to finish when the daemon
	// is asked to stop.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// OnExit is what the daemon does with its sheep then: stop, or leave.
	OnExit string `yaml:"on_exit"`

	// Sheep are sorted by name.
	Sheep []Sheep `yaml:"-"`

	// Warnings are keys of the file that have no effect.
	Warnings Problems `yaml:"-"`
}

// API is where and how the HTTP API is served.
type API struct {
	Host string `yaml:"host"`
	Port int    `yaml:"port"` // 0: a free one
	// Socket is the path of the unix socket for those who administer the machine.
	Socket string `yaml:"socket"`
	// SocketGroup is the group whose members may, beside root and the daemon's
	// own user: its name, or its number.
	SocketGroup string `yaml:"socket_group,omitempty"`
	// Tokens are those that clients authenticate with; without any, and without
	// TLS.ClientCAFile, everyone who reaches the API may submit and read.
	Tokens []Token `yaml:"tokens,omitempty"`
	TLS    *TLS    `yaml:"tls,omitempty"` // nil for none
	// CORSOrigins are the origins whose pages may use the API; "*" allows any to read.
	CORSOrigins []string `yaml:"cors_origins"`
	// Hosts are further names by which the API may be addressed on loopback
	// addresses and the socket.
	Hosts []string `yaml:"hosts,omitempty"`
	// TrustedProxies are reverse proxies that name the caller; nil for none.
	TrustedProxies *TrustedProxies `yaml:"trusted_proxies,omitempty"`
	// MaxConnections bounds the open connections of one caller's address; 0 is no
	// limit.
	MaxConnections int `yaml:"max_connections"`
	// RateLimit is how many requests a second one caller may make, RateBurst how
	// many at once; 0 is no limit.
	RateLimit float64 `yaml:"rate_limit"`
	RateBurst int     `yaml:"rate_burst"`
	// ReadTimeout bounds how long receiving a request may take, its body included.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// MaxBody bounds a request's body. Payloads are strings inside JSON and are
	// held in memory; large inputs go through storage.
	MaxBody size.Bytes `yaml:"max_body"`
	// MaxUpload bounds the body of a request that brings a job's inputs as files, and
	// what they take unpacked.
	MaxUpload size.Bytes `yaml:"max_upload"`
	// MaxQueued bounds the jobs that wait: beyond it none is taken. 0 is no limit.
	MaxQueued int `yaml:"max_queued"`
	// BodyMemory bounds the memory that the bodies of all requests take together.
	BodyMemory size.Bytes `yaml:"body_memory"`
	// Debug shows tracebacks and server paths to clients.
	Debug bool `yaml:"debug"`
}

// Registry is where container sheep pull images from.
type Registry struct {
	URL      string `yaml:"url"`
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// PasswordFile holds the password in its first line, instead.
	PasswordFile string `yaml:"password_file,omitempty"`
	// DockerConfig is a docker config.json with credentials, for no Username.
	DockerConfig string `yaml:"docker_config,omitempty"`
	// CAFile holds certificates of authorities to trust beside the system's.
	CAFile string `yaml:"ca_file,omitempty"`
	// HostsDir holds hosts.toml files as containerd has them (certs.d); empty is
	// where containerd and Docker have them.
	HostsDir string `yaml:"hosts_dir,omitempty"`
}

// Models is which models may be run, within which limits, and how they are given
// jobs.
type Models struct {
	// Allow lists them, as job.ParseRule reads it; nil allows all.
	Allow []string `yaml:"allow,omitempty"`
	// Limits are defaults for the jobs of some models. The first that matches a
	// job's model counts.
	Limits []ModelLimits `yaml:"limits,omitempty"`
	// Contracts say how the images of some models are given jobs. The first that
	// matches a model counts.
	Contracts []ModelContract `yaml:"contracts,omitempty"`
	// Nodes say which nodes of a fleet run some models. The first that matches a model
	// counts.
	Nodes []ModelNodes `yaml:"nodes,omitempty"`
}

// ModelNodes are the nodes for the models that a pattern matches.
type ModelNodes struct {
	// Model is as in ModelLimits.
	Model string `yaml:"model"`
	// Labels, as KEY=VALUE, are those that a node must have, all of them.
	Labels []string `yaml:"labels"`
}

// Rule is Model as the checked configuration has it.
func (m ModelNodes) Rule() job.Rule {
	rule, _ := job.ParseRule(m.Model) // the configuration was checked
	return rule
}

// NodeLabels are Labels as the checked configuration has them.
func (m ModelNodes) NodeLabels() job.Labels { return labelsOf(m.Labels) }

// ModelContract is how the images of the models that a pattern matches are given
// jobs.
type ModelContract struct {
	// Model is as in ModelLimits.
	Model string `yaml:"model"`
	// Contract is zeromq, command, warm or cog; empty leaves it to the sheep and the
	// image.
	Contract string `yaml:"contract,omitempty"`
	// Command and Args take the place of the sheep's and the image's, where they are
	// not nil.
	Command []string `yaml:"command,omitempty"`
	Args    []string `yaml:"args,omitempty"`
}

// Rule is Model as the checked configuration has it.
func (m ModelContract) Rule() job.Rule {
	rule, _ := job.ParseRule(m.Model) // the configuration was checked
	return rule
}

// ModelLimits are the Limits of the jobs whose model a pattern matches.
type ModelLimits struct {
	// Model is NAME or NAME:VERSION, as job.ParseRule reads it, without a digest.
	Model  string `yaml:"model"`
	Limits `yaml:",inline"`
}

// Rule is Model as the checked configuration has it.
func (m ModelLimits) Rule() job.Rule {
	rule, _ := job.ParseRule(m.Model) // the configuration was checked
	return rule
}

// Limits are job.Limits in a configuration. A nil field is left to the
// defaults that apply beside: those of a job's model come first, then those of
// the sheep, then those for all jobs.
type Limits struct {
	Retries     *int           `yaml:"retries,omitempty"`
	RetryPause  *time.Duration `yaml:"retry_pause,omitempty"`
	WaitTimeout *time.Duration `yaml:"wait_timeout,omitempty"`
	LoadTimeout *time.Duration `yaml:"load_timeout,omitempty"`
	RunTimeout  *time.Duration `yaml:"run_timeout,omitempty"`
}

// Job is l for those who handle jobs.
func (l Limits) Job() job.Limits { return job.Limits(l) }

// Trust is Allow as a job.Trust; nil for all models.
func (m Models) Trust() job.Trust {
	if m.Allow == nil {
		return nil
	}
	trust := job.Trust{}
	for _, text := range m.Allow {
		if rule, err := job.ParseRule(text); err == nil { // the configuration was checked
			trust = append(trust, rule)
		}
	}
	return trust
}

// Containerd is what runs container sheep.
type Containerd struct {
	Address     string `yaml:"address"` // of its socket
	Namespace   string `yaml:"namespace"`
	Snapshotter string `yaml:"snapshotter"`
	// ImageBudget bounds the disk space of pulled images; 0 is no bound.
	ImageBudget size.Bytes `yaml:"image_budget"`
	// CNIConfDir configures the network of sheep with network cni; its plugins
	// are in CNIPluginDirs.
	CNIConfDir    string   `yaml:"cni_conf_dir"`
	CNIPluginDirs []string `yaml:"cni_plugin_dirs"`
	// AllowedMounts are the host's paths that sheep may mount.
	AllowedMounts []string `yaml:"allowed_mounts,omitempty"`
}

// Endpoint splits URL into the registry's address, as it begins an image
// reference, and whether it uses TLS.
func (r Registry) Endpoint() (address string, tls bool) { return endpoint(r.URL) }

// Storage is where jobs' inputs and outputs are: in the S3 storage at URL, or,
// without URL, in the store embedded in the daemon.
type Storage struct {
	URL string `yaml:"url,omitempty"`
	// AccessKey and SecretKey are the credentials for the storage. The embedded
	// store has both or neither; with neither the daemon generates a pair.
	AccessKey string `yaml:"access_key,omitempty"`
	SecretKey Secret `yaml:"secret_key,omitempty"`
	// SecretKeyFile holds the secret key in its first line, instead.
	SecretKeyFile string `yaml:"secret_key_file,omitempty"`
	// SessionToken belongs to temporary keys.
	SessionToken Secret `yaml:"session_token,omitempty"`
	// CAFile holds, in PEM, the certificates that signed the storage's own.
	CAFile string `yaml:"ca_file,omitempty"`
	// Addressing is where the bucket's name goes: auto, path or host.
	Addressing string `yaml:"addressing,omitempty"`
	// PublicURL is where clients reach the storage, for addresses of files that they are
	// told; empty is URL, and none for the embedded store.
	PublicURL string `yaml:"public_url,omitempty"`
	// Bucket holds all jobs below <job_id>/; empty means a bucket for each job.
	Bucket string `yaml:"bucket,omitempty"`
	Region string `yaml:"region,omitempty"`
	// Listen is the embedded store's address, with port 0 for a free one.
	Listen string `yaml:"listen,omitempty"`
	// Path is the directory of the embedded store's files.
	Path string `yaml:"path,omitempty"`
	// Domains are the embedded store's own names: with one, the host
	// <bucket>.<domain> names a bucket.
	Domains []string `yaml:"domain,omitempty"`
	// CORSOrigins are the web pages that browsers let use the embedded store.
	CORSOrigins []string `yaml:"cors_origins,omitempty"`
	// MinFree is how much of the embedded store's disk stays free: what would take
	// from it is refused. Nil for a storage elsewhere.
	MinFree *size.Bytes `yaml:"min_free,omitempty"`
	// Keep is how long the files of jobs that have ended are kept.
	Keep Keep `yaml:"keep,omitempty"`
	// KeepUploads is how long inputs that clients put into storage themselves wait for
	// their job to be submitted, and MaxUpload what those of one job take at most.
	KeepUploads time.Duration `yaml:"keep_uploads"`
	MaxUpload   size.Bytes    `yaml:"max_upload"`
}

// Keep is how long the files of jobs are kept after their end; what is left out is
// kept for ever.
type Keep struct {
	KeepTimes `yaml:",inline"`
	// Models are exceptions for some models. The first that matches a job's model
	// counts.
	Models []ModelKeep `yaml:"models,omitempty"`
}

// KeepTimes are job.KeepTimes as a configuration says them.
type KeepTimes struct {
	Done      *time.Duration `yaml:"done,omitempty"`
	Failed    *time.Duration `yaml:"failed,omitempty"`
	Cancelled *time.Duration `yaml:"cancelled,omitempty"`
}

// ModelKeep are the KeepTimes of the jobs whose model a pattern matches.
type ModelKeep struct {
	// Model is NAME or NAME:VERSION, as job.ParseRule reads it, without a digest.
	Model     string `yaml:"model"`
	KeepTimes `yaml:",inline"`
}

// Retention is k for those who handle jobs.
func (k Keep) Retention() job.Retention {
	r := job.Retention{All: job.KeepTimes(k.KeepTimes)}
	for _, m := range k.Models {
		rule, _ := job.ParseRule(m.Model) // the configuration was checked
		r.Models = append(r.Models, job.KeepRule{Models: rule, KeepTimes: job.KeepTimes(m.KeepTimes)})
	}
	return r
}

// Embedded reports whether the daemon serves the storage itself.
func (s Storage) Embedded() bool { return s.URL == "" }

// Endpoint splits URL into HOST[:PORT] and whether it uses TLS.
func (s Storage) Endpoint() (address string, tls bool) { return endpoint(s.URL) }

// endpoint treats a URL without scheme as plain HTTP.
func endpoint(url string) (address string, tls bool) {
	if address, ok := cutScheme(url, "https"); ok {
		return strings.TrimSuffix(address, "/"), true
	}
	address, _ = cutScheme(url, "http")
	return strings.TrimSuffix(address, "/"), false
}

func cutScheme(url, scheme string) (string, bool) {
	prefix := scheme + "://"
	if len(url) >= len(prefix) && strings.EqualFold(url[:len(prefix)], prefix) {
		return url[len(prefix):], true
	}
	return url, false
}

// Fleet is how the nodes that share a ledger reach one another.
type Fleet struct {
	// Address is the URL of this node's API for other nodes; empty is where it listens,
	// by the node's name.
	Address string `yaml:"address,omitempty"`
	// SecretFile holds in its first line what nodes know one another by; without one they
	// do not ask one another.
	SecretFile string `yaml:"secret_file,omitempty"`
	// CAFile holds certificates of authorities to trust beside the machine's.
	CAFile string `yaml:"ca_file,omitempty"`
	// Labels of this node, as KEY=VALUE.
	Labels []string `yaml:"labels,omitempty"`
}

// NodeLabels are Labels as the checked configuration has them.
func (f Fleet) NodeLabels() job.Labels { return labelsOf(f.Labels) }

// labelsOf reads KEY=VALUE, of a checked configuration.
func labelsOf(list []string) job.Labels {
	labels := job.Labels{}
	for _, text := range list {
		key, value, _ := strings.Cut(text, "=")
		labels[key] = value
	}
	return labels
}

// Ledger is the record of jobs: a SQLite file or, where URL is given, a PostgreSQL
// database.
type Ledger struct {
	// Path is that of the SQLite file; empty where there is none.
	Path string `yaml:"path,omitempty"`
	// URL is that of the database. It may hold a password.
	URL Secret `yaml:"url,omitempty"`
	// DirectURL is that of the database server where URL is a pooler's.
	DirectURL Secret `yaml:"direct_url,omitempty"`
	// PasswordFile holds the database's password in its first line.
	PasswordFile string `yaml:"password_file,omitempty"`
	// Lease is for how long the node's claims are kept after it was heard from last. Nil
	// for a SQLite file.
	Lease *time.Duration `yaml:"lease,omitempty"`
	// Keep and KeepJobs bound the records of finished jobs by age and number.
	Keep     time.Duration `yaml:"keep"`
	KeepJobs int           `yaml:"keep_jobs"`
	// EventKeep and EventNumber bound the events of jobs by age and number.
	EventKeep   time.Duration `yaml:"event_keep"`
	EventNumber int           `yaml:"event_number"`
}

// Shared reports whether the ledger is one that several nodes may have.
func (l Ledger) Shared() bool { return !l.URL.IsZero() }

// HoldsPassword reports whether the configuration itself has the database's password.
func (l Ledger) HoldsPassword() bool {
	return holdsPassword(l.URL.Reveal()) || holdsPassword(l.DirectURL.Reveal())
}

// Logging is what is logged and how.
type Logging struct {
	Level  string `yaml:"level"`  // debug, info, warning or error
	Format string `yaml:"format"` // auto, text, json or journal
}

// SlogLevel is Level for log/slog.
func (l Logging) SlogLevel() slog.Level {
	switch l.Level {
	case "debug":
		return slog.LevelDebug
	case "warning":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Scheduling bounds how jobs are handed to sheep.
type Scheduling struct {
	// MaxTurn bounds how long a sheep goes on with the model that it has loaded
	// while older jobs of other models wait.
	MaxTurn time.Duration `yaml:"max_turn"`
	// MaxAttempts is how often a job is started before it fails for good.
	MaxAttempts int `yaml:"max_attempts"`
	// StageAhead is how many jobs' inputs a sheep fetches while it runs another: 0
	// or 1.
	StageAhead *int `yaml:"stage_ahead"`
	// StageBudget bounds the disk space of inputs fetched ahead; 0 is no bound.
	StageBudget size.Bytes `yaml:"stage_budget"`
	// FairShare has tenants share the sheep by what they have used; what was used
	// ShareHalfLife ago counts half.
	FairShare     bool          `yaml:"fair_share"`
	ShareHalfLife time.Duration `yaml:"share_half_life"`
	// Models bound the jobs that sheep have at a time of some models. All that match a
	// job's model count.
	Models []ModelsRunning `yaml:"models,omitempty"`
	// Tenants bound the jobs of tenants. The first that matches a tenant counts.
	Tenants []TenantLimit `yaml:"tenants,omitempty"`
}

// ModelsRunning bounds the jobs that sheep have of the models that a pattern matches,
// all together.
type ModelsRunning struct {
	// Model is as in ModelLimits.
	Model      string `yaml:"model"`
	MaxRunning int    `yaml:"max_running"`
}

// Rule is Model as the checked configuration has it.
func (m ModelsRunning) Rule() job.Rule {
	rule, _ := job.ParseRule(m.Model) // the configuration was checked
	return rule
}

// TenantLimit is what a tenant may have.
type TenantLimit struct {
	// Tenant is its name, or * for each that none before names.
	Tenant string `yaml:"tenant"`
	// MaxRunning bounds the jobs that sheep have at a time, and MaxQueued those that
	// wait; 0 is no limit.
	MaxRunning int `yaml:"max_running,omitempty"`
	MaxQueued  int `yaml:"max_queued,omitempty"`
	// Weight is its part where tenants share, relative to others'; nil is 1.
	Weight *float64 `yaml:"weight,omitempty"`
}

// GPU is how sheep get the GPUs that they request.
type GPU struct {
	// Mode is how containers get them: cdi, hook, or auto, which prefers CDI.
	Mode string `yaml:"mode"`
	// CDIDirs hold the machine's CDI specs; later ones take precedence.
	CDIDirs []string `yaml:"cdi_dirs"`
	// DriverCapabilities are the parts of NVIDIA's driver that containers get in
	// hook mode.
	DriverCapabilities []string `yaml:"driver_capabilities"`

	// Interval is how often the driver is asked for the state of the GPUs.
	Interval time.Duration `yaml:"interval"`
	// Retest is after how long a GPU that was taken out is tested.
	Retest time.Duration `yaml:"retest"`
	// Turn is how long a sheep with one job after another may keep a GPU that
	// another sheep waits for.
	Turn time.Duration `yaml:"turn"`
	// MemoryWait bounds how long a model that is to be started waits for memory.
	MemoryWait time.Duration `yaml:"memory_wait"`
	// Xids overrides the actions for Xids, by their codes.
	Xids map[string]Xid `yaml:"xids,omitempty"`
}

// Xid is the action for an error that NVIDIA's driver reports.
type Xid struct {
	Action string `yaml:"action"` // retire, fail_job or ignore
	// Text is what it means, in a few words; empty means the built-in text.
	Text string `yaml:"text,omitempty"`
}

// CheckSheep checks a sheep's section for its type; it decodes it with
// Sheep.Decode and returns what that returned, or *runtime.FieldError values,
// joined. c is the rest of the configuration, complete with defaults; where it
// holds something wrong that is reported as well.
type CheckSheep func(c *Config, s Sheep) error

// Loader reads configuration files.
type Loader struct {
	// Types are the known sheep types.
	Types map[string]CheckSheep
	// LedgerURL says what is wrong with a database's URL, without showing it; nil accepts
	// any.
	LedgerURL func(url string) error
	// Override, if not nil, replaces values of the file by those of the command
	// line, before anything is checked: DataRoot, StateDir,
	// API.Host, API.Port, API.Debug.
	Override func(*Config)
	// Env looks up environment variables; nil means os.LookupEnv.
	Env func(string) (string, bool)
}

// document is the file: Config, with the sheep as they are written.
type document struct {
	Config `yaml:",inline"`
	Flock  *node `yaml:"sheep"`
}

// source is the text of a file.
type source struct {
	file string
	text []byte
}

// Load reads and checks a file and its drop-ins, see DropIns. Errors in the files are
// of type Problems; any other error means that a file cannot be read.
func (l Loader) Load(file string) (*Config, error) {
	var sources []source
	names, err := DropIns(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, name := range append([]string{file}, names...) {
		text, err := read(name)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		sources = append(sources, source{name, text})
	}
	lookup := l.Env
	if lookup == nil {
		lookup = os.LookupEnv
	}
	machine, err := thisMachine(withDirectory(file, lookup))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, problems := l.parse(sources, machine)
	if len(problems) > 0 {
		return nil, problems.inOrder(file)
	}
	return c, nil
}

// read reads at most the size that a configuration may have, and one byte more.
func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// DropIns are the files of the directory FILE.d whose names end in .yml or .yaml, in
// the order of their names. Values of a later file replace those of an earlier one and
// of FILE; mappings are merged key by key.
func DropIns(file string) ([]string, error) {
	dir := file + ".d"
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !e.IsDir() && (ext == ".yml" || ext == ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, err
}

// directoryVariable refers to the directory of the configuration file, in paths that
// are to be relative to it.
const directoryVariable = "CONFIG_DIR"

// withDirectory is an environment in which CONFIG_DIR is the file's directory, unless
// it is set.
func withDirectory(file string, env func(string) (string, bool)) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, set := env(name)
		if set || name != directoryVariable {
			return value, set
		}
		dir, err := filepath.Abs(filepath.Dir(file))
		return dir, err == nil
	}
}

// parse reads the main file, which comes first, and its drop-ins.
func (l Loader) parse(sources []source, m machine) (*Config, Problems) {
	file := sources[0].file
	root, problems := compose("", sources[0].text, m.env)
	if root == nil {
		return nil, problems
	}
	for _, s := range sources[1:] {
		over, wrong := compose(s.file, s.text, m.env)
		problems = append(problems, wrong...)
		if over != nil {
			root.merge(over)
		}
	}
	warnings := retire(root)
	doc := document{Config: defaults(m)}
	problems = append(problems, decode(root, "", reflect.ValueOf(&doc).Elem())...)
	c := &doc.Config
	written := *c
	if l.Override != nil {
		l.Override(c)
	}
	ch := checker{Config: c, ledgerURL: l.LedgerURL, file: file, root: root, problems: problems, directory: m.directory, overridden: map[string]bool{
		"data_root": c.DataRoot != written.DataRoot,
		"state_dir": c.StateDir != written.StateDir,
		"api.host":  c.API.Host != written.API.Host,
		"api.port":  c.API.Port != written.API.Port,
	}}
	c.derive(m)
	ch.sheep(file, doc.Flock)
	ch.all()
	ch.types(l.Types)
	c.Warnings = warnings.inOrder(file)
	return c, ch.problems
}
