// Package config reads shepherd's configuration file. It returns a typed Config with all
// defaults applied, or all errors of the file, each with line and column.
//
// # How a file is read
//
//	text ─► compose ─► tree of nodes ─► decode ─► Config ─► check ─► Config
//	        YAML, aliases,              strictly,            values: paths,
//	        references to the           by yaml tags         ports, names,
//	        environment                                      the sheep types
//
// Every step continues after an error and collects Problems. No step prints a Secret; of
// values from the environment, only paths are shown. Reading changes nothing on the machine:
// it creates no directory and opens no port.
//
// docs/configuration.md describes every key and its default.
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

// Config is a checked configuration with all defaults applied.
type Config struct {
	// DataRoot contains a directory for each sheep, see Sheep.Dir, with the files of the
	// jobs it runs. Working directories of jobs are removed from it at start-up.
	DataRoot string `yaml:"data_root"`
	// StateDir holds what has to survive a restart. It must not lie in a directory that is
	// cleaned at start-up.
	StateDir string `yaml:"state_dir"`
	// MinFree is how much of the disks of DataRoot and StateDir stays free: with less, no
	// job is accepted and no inputs are fetched.
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

	// DrainTimeout is how long running jobs may take to finish when the daemon is stopped.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// OnExit is what happens to the sheep when the daemon is stopped: stop or leave.
	OnExit string `yaml:"on_exit"`

	// Sheep are sorted by name.
	Sheep []Sheep `yaml:"-"`

	// Warnings are keys of the file that have no effect.
	Warnings Problems `yaml:"-"`
}

// API configures the HTTP API.
type API struct {
	Host string `yaml:"host"`
	Port int    `yaml:"port"` // 0: a free one
	// Socket is the path of the unix socket for administrators.
	Socket string `yaml:"socket"`
	// SocketGroup is the group, by name or number, whose members may use the socket besides
	// root and the daemon's own user.
	SocketGroup string `yaml:"socket_group,omitempty"`
	// Tokens are the clients' tokens. Without Tokens, TLS.ClientCAFile and TrustedProxies,
	// everyone who reaches the API may submit and read.
	Tokens []Token `yaml:"tokens,omitempty"`
	TLS    *TLS    `yaml:"tls,omitempty"` // nil for none
	// CORSOrigins are the origins whose pages may use the API; "*" allows any to read.
	CORSOrigins []string `yaml:"cors_origins"`
	// Hosts are additional host names by which the API may be addressed on loopback
	// addresses and the socket.
	Hosts []string `yaml:"hosts,omitempty"`
	// TrustedProxies are reverse proxies that name the caller; nil for none.
	TrustedProxies *TrustedProxies `yaml:"trusted_proxies,omitempty"`
	// MaxConnections bounds the open connections of one caller's address; 0 is no
	// limit.
	MaxConnections int `yaml:"max_connections"`
	// RateLimit is how many requests per second one caller may make, RateBurst how many at
	// once; 0 is no limit.
	RateLimit float64 `yaml:"rate_limit"`
	RateBurst int     `yaml:"rate_burst"`
	// ReadTimeout bounds how long receiving a request may take, its body included.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// MaxBody bounds a request's body. Payloads are strings inside JSON and are
	// held in memory; large inputs go through storage.
	MaxBody size.Bytes `yaml:"max_body"`
	// MaxUpload bounds the body of a request with a job's inputs as files, and their
	// unpacked size.
	MaxUpload size.Bytes `yaml:"max_upload"`
	// MaxQueued bounds the waiting jobs: further ones are refused. 0 is no limit.
	MaxQueued int `yaml:"max_queued"`
	// BodyMemory bounds the memory for the bodies of all requests.
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
	// DockerConfig is a docker config.json with credentials, used if Username is empty.
	DockerConfig string `yaml:"docker_config,omitempty"`
	// CAFile holds additional trusted authorities.
	CAFile string `yaml:"ca_file,omitempty"`
	// HostsDir holds hosts.toml files in containerd's format (certs.d); empty means the
	// default directories of containerd and Docker.
	HostsDir string `yaml:"hosts_dir,omitempty"`
}

// Models configures which models may run, their limits, and how their images are given jobs.
type Models struct {
	// Allow lists the models that may run, in the format of job.ParseRule; nil allows all.
	Allow []string `yaml:"allow,omitempty"`
	// Limits are defaults for the jobs of some models. The first that matches a
	// job's model counts.
	Limits []ModelLimits `yaml:"limits,omitempty"`
	// Contracts configures how the images of some models are given jobs. The first that
	// matches a model counts.
	Contracts []ModelContract `yaml:"contracts,omitempty"`
	// Nodes configures which nodes of a fleet run some models. The first that matches a
	// model counts.
	Nodes []ModelNodes `yaml:"nodes,omitempty"`
}

// ModelNodes selects the nodes for the models that a pattern matches.
type ModelNodes struct {
	// Model is as in ModelLimits.
	Model string `yaml:"model"`
	// Labels, as KEY=VALUE, are labels that a node must have, all of them.
	Labels []string `yaml:"labels"`
}

// Rule is Model as the checked configuration has it.
func (m ModelNodes) Rule() job.Rule {
	rule, _ := job.ParseRule(m.Model) // the configuration was checked
	return rule
}

// NodeLabels are Labels as the checked configuration has them.
func (m ModelNodes) NodeLabels() job.Labels { return labelsOf(m.Labels) }

// ModelContract configures how the images of the models that a pattern matches are given
// jobs.
type ModelContract struct {
	// Model is as in ModelLimits.
	Model string `yaml:"model"`
	// Contract is zeromq, command, warm or cog; empty leaves the choice to the sheep and
	// the image.
	Contract string `yaml:"contract,omitempty"`
	// Command and Args replace the sheep's and the image's, unless they are nil.
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

// Limits are job.Limits in a configuration. A nil field is taken from the next of: the
// limits of the job's model, those of the sheep, those for all jobs.
type Limits struct {
	Retries     *int           `yaml:"retries,omitempty"`
	RetryPause  *time.Duration `yaml:"retry_pause,omitempty"`
	WaitTimeout *time.Duration `yaml:"wait_timeout,omitempty"`
	LoadTimeout *time.Duration `yaml:"load_timeout,omitempty"`
	RunTimeout  *time.Duration `yaml:"run_timeout,omitempty"`
}

// Job converts l to job.Limits.
func (l Limits) Job() job.Limits { return job.Limits(l) }

// Trust converts Allow to a job.Trust; nil for all models.
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

// Containerd configures the containerd that runs container sheep.
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

// Storage configures the storage of jobs' inputs and outputs: the S3 storage at URL or,
// without URL, the one embedded in the daemon.
type Storage struct {
	URL string `yaml:"url,omitempty"`
	// AccessKey and SecretKey are the credentials for the storage. The embedded
	// store has both or neither; with neither the daemon generates a pair.
	AccessKey string `yaml:"access_key,omitempty"`
	SecretKey Secret `yaml:"secret_key,omitempty"`
	// SecretKeyFile holds the secret key in its first line, instead.
	SecretKeyFile string `yaml:"secret_key_file,omitempty"`
	// SessionToken is the token of temporary credentials.
	SessionToken Secret `yaml:"session_token,omitempty"`
	// CAFile holds, in PEM, the authorities of the storage's certificate.
	CAFile string `yaml:"ca_file,omitempty"`
	// Addressing is the position of the bucket's name in URLs: auto, path or host.
	Addressing string `yaml:"addressing,omitempty"`
	// PublicURL is the URL at which clients reach the storage, for presigned URLs; empty
	// means URL, and no presigned URLs for the embedded storage.
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
	// CORSOrigins are the origins of web pages that may use the embedded storage.
	CORSOrigins []string `yaml:"cors_origins,omitempty"`
	// MinFree is how much of the embedded storage's disk stays free: uploads beyond it are
	// refused. Nil for an external storage.
	MinFree *size.Bytes `yaml:"min_free,omitempty"`
	// Keep is how long the files of jobs that have ended are kept.
	Keep Keep `yaml:"keep,omitempty"`
	// KeepUploads is how long uploads wait for their job to be submitted, and MaxUpload
	// bounds the size of one.
	KeepUploads time.Duration `yaml:"keep_uploads"`
	MaxUpload   size.Bytes    `yaml:"max_upload"`
}

// Keep is how long the files of jobs are kept after their end; nil times mean forever.
type Keep struct {
	KeepTimes `yaml:",inline"`
	// Models are exceptions for some models. The first that matches a job's model counts.
	Models []ModelKeep `yaml:"models,omitempty"`
}

// KeepTimes are job.KeepTimes in a configuration.
type KeepTimes struct {
	Done      *time.Duration `yaml:"done,omitempty"`
	Failed    *time.Duration `yaml:"failed,omitempty"`
	Cancelled *time.Duration `yaml:"cancelled,omitempty"`
}

// ModelKeep are the KeepTimes for jobs whose model a pattern matches.
type ModelKeep struct {
	// Model is NAME or NAME:VERSION, as job.ParseRule reads it, without a digest.
	Model     string `yaml:"model"`
	KeepTimes `yaml:",inline"`
}

// Retention converts k to a job.Retention.
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

// Fleet configures how the nodes that share a ledger reach one another.
type Fleet struct {
	// Address is the URL of this node's API for other nodes; empty means its listening port
	// on the host named Node.
	Address string `yaml:"address,omitempty"`
	// SecretFile holds in its first line the secret shared by the nodes; without it they do
	// not query one another.
	SecretFile string `yaml:"secret_file,omitempty"`
	// CAFile holds additional trusted authorities.
	CAFile string `yaml:"ca_file,omitempty"`
	// Labels of this node, as KEY=VALUE.
	Labels []string `yaml:"labels,omitempty"`
}

// NodeLabels are Labels as the checked configuration has them.
func (f Fleet) NodeLabels() job.Labels { return labelsOf(f.Labels) }

// labelsOf parses a checked list of KEY=VALUE.
func labelsOf(list []string) job.Labels {
	labels := job.Labels{}
	for _, text := range list {
		key, value, _ := strings.Cut(text, "=")
		labels[key] = value
	}
	return labels
}

// Ledger configures the record of jobs: a SQLite file or, with URL, a PostgreSQL database.
type Ledger struct {
	// Path is the path of the SQLite file; empty with a database.
	Path string `yaml:"path,omitempty"`
	// URL is the URL of the database. It may contain a password.
	URL Secret `yaml:"url,omitempty"`
	// DirectURL is the URL of the database server if URL is a pooler's.
	DirectURL Secret `yaml:"direct_url,omitempty"`
	// PasswordFile holds the database's password in its first line.
	PasswordFile string `yaml:"password_file,omitempty"`
	// Lease is how long the node's claims are kept after its last contact with the
	// database. Nil for a SQLite file.
	Lease *time.Duration `yaml:"lease,omitempty"`
	// Keep and KeepJobs bound the records of finished jobs by age and number.
	Keep     time.Duration `yaml:"keep"`
	KeepJobs int           `yaml:"keep_jobs"`
	// EventKeep and EventNumber bound the events of jobs by age and number.
	EventKeep   time.Duration `yaml:"event_keep"`
	EventNumber int           `yaml:"event_number"`
}

// Shared reports whether several nodes may share the ledger.
func (l Ledger) Shared() bool { return !l.URL.IsZero() }

// HoldsPassword reports whether a configured URL contains the database's password.
func (l Ledger) HoldsPassword() bool {
	return holdsPassword(l.URL.Reveal()) || holdsPassword(l.DirectURL.Reveal())
}

// Logging configures the log.
type Logging struct {
	Level  string `yaml:"level"`  // debug, info, warning or error
	Format string `yaml:"format"` // auto, text, json or journal
}

// SlogLevel converts Level.
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

// Scheduling configures how jobs are distributed to sheep.
type Scheduling struct {
	// MaxTurn bounds how long a sheep prefers jobs of its loaded model while older jobs of
	// other models wait.
	MaxTurn time.Duration `yaml:"max_turn"`
	// MaxAttempts is how many times a job may take its sheep, its devices or the daemon
	// down before it fails.
	MaxAttempts int `yaml:"max_attempts"`
	// StageAhead is how many jobs a sheep prepares while it runs another: 0 or 1.
	StageAhead *int `yaml:"stage_ahead"`
	// StageBudget bounds the disk space of inputs fetched ahead; 0 is no bound.
	StageBudget size.Bytes `yaml:"stage_budget"`
	// FairShare distributes the sheep among tenants by their recorded GPU time, whose
	// half-life is ShareHalfLife.
	FairShare     bool          `yaml:"fair_share"`
	ShareHalfLife time.Duration `yaml:"share_half_life"`
	// Models bound how many jobs of some models sheep have at a time. All entries that
	// match a job's model count.
	Models []ModelsRunning `yaml:"models,omitempty"`
	// Tenants bound the jobs of tenants. The first that matches a tenant counts.
	Tenants []TenantLimit `yaml:"tenants,omitempty"`
}

// ModelsRunning bounds how many jobs of all models that a pattern matches sheep have at a
// time.
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

// TenantLimit are the limits and the weight of a tenant.
type TenantLimit struct {
	// Tenant is the tenant's name, or * for each tenant not named by an earlier entry.
	Tenant string `yaml:"tenant"`
	// MaxRunning bounds the jobs that sheep have at a time, MaxQueued those that wait; 0 is
	// no limit.
	MaxRunning int `yaml:"max_running,omitempty"`
	MaxQueued  int `yaml:"max_queued,omitempty"`
	// Weight is the tenant's weight under FairShare; nil is 1.
	Weight *float64 `yaml:"weight,omitempty"`
}

// GPU configures how sheep get the GPUs that they request.
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
	// Retest is how long after its failure a GPU is tested.
	Retest time.Duration `yaml:"retest"`
	// Turn is how long a busy sheep may keep a GPU that another sheep waits for.
	Turn time.Duration `yaml:"turn"`
	// MemoryWait bounds how long the start of a model waits for GPU memory.
	MemoryWait time.Duration `yaml:"memory_wait"`
	// Xids overrides the actions for Xids, by code.
	Xids map[string]Xid `yaml:"xids,omitempty"`
}

// Xid is the action for an error that NVIDIA's driver reports.
type Xid struct {
	Action string `yaml:"action"` // retire, fail_job or ignore
	// Text describes the error in a few words; empty means the built-in text.
	Text string `yaml:"text,omitempty"`
}

// CheckSheep checks the section of a sheep of its type: it decodes the section with
// Sheep.Decode and returns the error of that, or *runtime.FieldError values, joined. c is
// the rest of the configuration with all defaults; its own errors are reported as well.
type CheckSheep func(c *Config, s Sheep) error

// Loader reads configuration files.
type Loader struct {
	// Types are the known sheep types.
	Types map[string]CheckSheep
	// LedgerURL returns an error for an invalid database URL, without showing the URL; nil
	// accepts any.
	LedgerURL func(url string) error
	// Override, if not nil, replaces values with those of the command line before they are
	// checked: DataRoot, StateDir, API.Host, API.Port, API.Debug.
	Override func(*Config)
	// Env looks up environment variables; nil means os.LookupEnv.
	Env func(string) (string, bool)
}

// document is a file: Config, with the sheep undecoded.
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

// read reads a file, up to one byte more than maxFile.
func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// DropIns returns the files FILE.d/*.yml and FILE.d/*.yaml, sorted by name. Values of a
// later file replace those of earlier ones and of FILE; mappings are merged key by key.
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

// directoryVariable is the variable for the directory of the configuration file, for paths
// relative to it.
const directoryVariable = "CONFIG_DIR"

// withDirectory returns an environment in which CONFIG_DIR is the file's directory, unless
// it is set already.
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

// parse reads sources: the main file first, then its drop-ins.
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
	r := &report{root: root, problems: problems, overridden: map[string]bool{
		"data_root": c.DataRoot != written.DataRoot,
		"state_dir": c.StateDir != written.StateDir,
		"api.host":  c.API.Host != written.API.Host,
		"api.port":  c.API.Port != written.API.Port,
	}}
	c.derive(m)
	ch := checker{Config: c, report: r, file: file, directory: m.directory}
	ch.sheep(file, doc.Flock)
	ch.all(l.LedgerURL)
	ch.types(l.Types)
	c.Warnings = warnings.inOrder(file)
	return c, r.problems
}
