package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	imageendpoint "github.com/iterait/shepherd/image/endpoint"
	"github.com/iterait/shepherd/internal/bucketname"
	"github.com/iterait/shepherd/job"
)

// checker validates the values of a decoded file.
type checker struct {
	*Config
	ledgerURL func(string) error
	file      string // path of the main file
	root      *node
	problems  Problems
	directory string // base of relative paths
	// overridden holds the keys whose value came from the command line.
	overridden map[string]bool
}

func (ch *checker) wrong(n *node, path, format string, args ...any) {
	ch.problems = append(ch.problems, at(n, path, format, args...))
}

// at returns the file's value at a path of plain keys; nil if there is none, or the command
// line overrides it.
func (ch *checker) at(path string) *node {
	if ch.overridden[path] {
		return nil
	}
	n := ch.root
	for key := range strings.SplitSeq(path, ".") {
		if n = n.get(key); n == nil {
			return nil
		}
	}
	return n
}

// near returns the position of a key, or of the innermost of its sections that exists.
func (ch *checker) near(path string) *node {
	n, where := ch.root, &node{line: 1, column: 1}
	for key := range strings.SplitSeq(path, ".") {
		e := n.entry(key)
		if e == nil {
			break
		}
		n, where = e.value, &node{kind: e.value.kind, file: e.file, line: e.line, column: e.column}
	}
	return where
}

// missing reports an absent required key, unless its section is not a mapping, which is
// reported already.
func (ch *checker) missing(path, expected string) {
	where := ch.near(path)
	if ch.at(path) != nil || ch.overridden[path] || where.kind != null && where.kind != mapping {
		return
	}
	ch.wrong(where, path, "required key is missing or has no value; expected %s", expected)
}

// expect reports an invalid value. Every default is valid.
func (ch *checker) expect(right bool, path, expected string) {
	n := ch.at(path)
	switch {
	case right || ch.problems.cover(n, path):
	case n != nil:
		ch.wrong(n, path, "expected %s, found %s", expected, n.shown())
	default:
		ch.wrong(ch.near(path), path, "the value from the command line does not fit; expected %s", expected)
	}
}

// bad reports whether anything is wrong with a key.
func (ch *checker) bad(path string) bool {
	return slices.ContainsFunc(ch.problems, func(p *Problem) bool { return p.Path == path })
}

// reject reports an invalid value without showing it.
func (ch *checker) reject(path, problem string) {
	if n := ch.at(path); n != nil && problem != "" && !ch.problems.cover(n, path) {
		ch.wrong(n, path, "%s", problem)
	}
}

// embedded reports whether the file configures the embedded storage.
func (ch *checker) embedded() bool { return ch.at("storage.url") == nil }

func (ch *checker) all() {
	ch.missing("data_root", "the directory in which sheep keep the files of jobs")
	ch.paths()
	ch.keptPaths()
	ch.expect(nodeName.MatchString(ch.Node), "node", "a name of A-Z, a-z, 0-9, _, . and -, a letter or digit first")
	ch.api()
	ch.registry()
	ch.models()
	ch.containerd()
	ch.storage()
	ch.ledger()
	ch.fleet()
	ch.webhooks()
	ch.logging()
	ch.expect(ch.Scheduling.MaxTurn > 0, "scheduling.max_turn", "a duration longer than 0")
	ch.expect(ch.Scheduling.MaxAttempts > 0, "scheduling.max_attempts", "a whole number, 1 or more")
	ch.expect(*ch.Scheduling.StageAhead == 0 || *ch.Scheduling.StageAhead == 1, "scheduling.stage_ahead", "0 or 1")
	ch.sharing()
	ch.limits(ch.at("limits"), "limits", ch.Limits)
	ch.gpu()
	ch.expect(ch.DrainTimeout >= 0, "drain_timeout", "a duration, 0s or longer")
	ch.word("on_exit", ch.OnExit, []string{"stop", "leave"})
	ch.ports()
}

// sharing checks the limits and shares of models and tenants.
func (ch *checker) sharing() {
	s := ch.Scheduling
	ch.expect(s.ShareHalfLife >= time.Minute, "scheduling.share_half_life", "a duration of a minute or longer")
	for i, m := range s.Models {
		if ch.modelPattern("scheduling.models", i, m.Model) != nil && m.MaxRunning < 1 {
			ch.within(ch.at("scheduling.models"), i, "scheduling.models", "max_running", "expected a number of jobs, 1 or more")
		}
	}
	list := ch.at("scheduling.tenants")
	if list == nil {
		return
	}
	names := map[string]bool{}
	for i, t := range s.Tenants {
		wrong := func(key, problem string) { ch.within(list, i, "scheduling.tenants", key, problem) }
		switch {
		case t.Tenant != "*":
			wrong("tenant", nameProblem("tenant", t.Tenant, names))
		case names[t.Tenant]:
			wrong("tenant", "is there already")
		case i < len(s.Tenants)-1:
			wrong("tenant", "is every tenant's, so what follows has no effect; put it last")
		}
		names[t.Tenant] = true
		if t.MaxRunning < 0 {
			wrong("max_running", "expected a number of jobs, or 0 for no limit")
		}
		if t.MaxQueued < 0 {
			wrong("max_queued", "expected a number of jobs, or 0 for no limit")
		}
		switch {
		case t.Weight == nil:
		case !(*t.Weight > 0) || math.IsInf(*t.Weight, 0):
			wrong("weight", "expected a number larger than 0")
		case !s.FairShare:
			wrong("weight", "has no effect without scheduling.fair_share")
		}
	}
}

// A node's name is a label of metrics and part of records.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$`)

func (ch *checker) api() {
	ch.expect(validHost(ch.API.Host), "api.host", "an IP address or host name to listen on")
	ch.expect(validPort(ch.API.Port), "api.port", "a port from 1 to 65535, or 0 for a free one")
	ch.expect(ch.API.MaxBody > 0, "api.max_body", "a size larger than 0")
	ch.expect(ch.API.MaxUpload > 0, "api.max_upload", "a size larger than 0")
	ch.expect(ch.API.MaxQueued >= 0, "api.max_queued", "a whole number, 0 (no limit) or more")
	ch.expect(ch.API.BodyMemory/2 >= ch.API.MaxBody || ch.bad("api.max_body"), "api.body_memory", "at least twice api.max_body")
	ch.access()
}

// RFC 1123 has no underscores, but host names of containers do.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?$`)

func validHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || hostName.MatchString(s)
}

func validPort(p int) bool { return p >= 0 && p <= 65535 }

func (ch *checker) registry() {
	if ch.Registry == nil {
		return
	}
	ch.missing("registry.url", "the registry's address, such as https://registry.example.com")
	problem := urlProblem(ch.Registry.URL, "username and password", true)
	if problem == "" {
		if _, err := imageendpoint.Parse(ch.Registry.URL); err != nil {
			problem = err.Error()
		}
	}
	ch.reject("registry.url", problem)
	if (!ch.Registry.Password.IsZero() || ch.Registry.PasswordFile != "") && ch.Registry.Username == "" {
		ch.missing("registry.username", "the user that the password is for")
	}
	if !ch.Registry.Password.IsZero() && ch.Registry.PasswordFile != "" {
		ch.reject("registry.password_file", "is there beside registry.password; remove one of them")
	}
	for _, f := range []struct{ key, path string }{
		{"registry.password_file", ch.Registry.PasswordFile},
		{"registry.docker_config", ch.Registry.DockerConfig},
		{"registry.ca_file", ch.Registry.CAFile},
		{"registry.hosts_dir", ch.Registry.HostsDir},
	} {
		ch.notEmpty(f.key, f.path == "")
		ch.expect(f.path == "" || filepath.IsAbs(f.path), f.key, "an absolute path")
	}
}

func (ch *checker) models() {
	if list := ch.at("models.allow"); list != nil && !ch.problems.cover(list, "models.allow") {
		if len(ch.Models.Allow) == 0 {
			ch.reject("models.allow", "is empty, so that no model could be run; name those that may, or leave it out for all")
		}
		for i, text := range ch.Models.Allow {
			if _, err := job.ParseRule(text); err != nil {
				ch.item(list, i, "models.allow", err.Error())
			}
		}
	}
	for i, m := range ch.Models.Limits {
		if item := ch.modelPattern("models.limits", i, m.Model); item != nil {
			ch.limits(item, fmt.Sprintf("models.limits[%d]", i), m.Limits)
		}
	}
	for i, m := range ch.Models.Nodes {
		if item := ch.modelPattern("models.nodes", i, m.Model); item != nil {
			if len(m.Labels) == 0 {
				ch.within(ch.at("models.nodes"), i, "models.nodes", "labels", "required key is missing or is empty; expected a list of KEY=VALUE")
			}
			ch.labels(item.get("labels"), fmt.Sprintf("models.nodes[%d].labels", i), m.Labels)
		}
	}
	list := ch.at("models.contracts")
	for i, m := range ch.Models.Contracts {
		if ch.modelPattern("models.contracts", i, m.Model) == nil {
			continue
		}
		within := func(key, problem string) { ch.within(list, i, "models.contracts", key, problem) }
		switch {
		case m.Contract == "" && m.Command == nil && m.Args == nil:
			within("contract", "required key is missing, as are command and args; expected zeromq, command, warm or cog")
		case m.Contract != "" && !slices.Contains([]string{"zeromq", "command", "warm", "cog"}, m.Contract):
			within("contract", fmt.Sprintf("%q is none of zeromq, command, warm and cog", m.Contract))
		}
		if m.Command != nil && (len(m.Command) == 0 || m.Command[0] == "") {
			within("command", "is empty; leave it out for the image's own")
		}
	}
}

// modelPattern checks the model of item i of the list at path, and returns the item; nil if
// it has been reported already.
func (ch *checker) modelPattern(path string, i int, model string) *node {
	list := ch.at(path)
	if i >= len(list.items) || ch.problems.cover(list.items[i], fmt.Sprintf("%s[%d]", path, i)) {
		return nil
	}
	switch rule, err := job.ParseRule(model); {
	case model == "":
		ch.within(list, i, path, "model", "required key is missing or has no value; expected NAME or NAME:VERSION, with * for any characters")
	case err != nil:
		ch.within(list, i, path, "model", err.Error())
	case rule.Digest != "":
		ch.within(list, i, path, "model", "has a digest; this goes by name and version, leave it out")
	}
	return list.items[i]
}

// keep checks the retention times.
func (ch *checker) keep() {
	times := func(n *node, path string, k KeepTimes) {
		for key, d := range map[string]*time.Duration{"done": k.Done, "failed": k.Failed, "cancelled": k.Cancelled} {
			value, at := n.get(key), below(path, key)
			if d == nil || value == nil || ch.problems.cover(value, at) || *d >= 0 && *d <= job.MaxKeep {
				continue
			}
			ch.wrong(value, at, "expected a duration from 0s (for ever) to %s, found %s", job.FormatDuration(job.MaxKeep), value.shown())
		}
	}
	times(ch.at("storage.keep"), "storage.keep", ch.Storage.Keep.KeepTimes)
	for i, m := range ch.Storage.Keep.Models {
		if item := ch.modelPattern("storage.keep.models", i, m.Model); item != nil {
			times(item, fmt.Sprintf("storage.keep.models[%d]", i), m.KeepTimes)
		}
	}
}

// limits checks the limits in section n, which may be nil.
func (ch *checker) limits(n *node, path string, l Limits) {
	for _, wrong := range l.Job().Validate() {
		value, at := n.get(wrong.Field), below(path, wrong.Field)
		if value == nil || ch.problems.cover(value, at) {
			continue
		}
		expected := fmt.Sprintf("a duration from 0s to %s", job.FormatDuration(job.MaxTimeout))
		if wrong.Field == "retries" {
			expected = fmt.Sprintf("a whole number from 0 to %d", job.MaxRetries)
		}
		ch.wrong(value, at, "expected %s, found %s", expected, value.shown())
	}
}

// containerd's own rules for namespaces; snapshotters' names are like them.
var containerdName = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

func (ch *checker) containerd() {
	c := ch.Containerd
	ch.expect(filepath.IsAbs(c.Address), "containerd.address", "the absolute path of containerd's socket")
	ch.expect(len(c.Namespace) <= 76 && containerdName.MatchString(c.Namespace), "containerd.namespace",
		"a namespace's name: at most 76 letters and digits, with single '.', '_' or '-' between them")
	ch.expect(containerdName.MatchString(c.Snapshotter), "containerd.snapshotter", "the name of one of containerd's snapshotters, such as overlayfs")
	ch.expect(filepath.IsAbs(c.CNIConfDir), "containerd.cni_conf_dir", "an absolute path")
	relative := func(p string) bool { return !filepath.IsAbs(p) }
	ch.expect(!slices.ContainsFunc(c.CNIPluginDirs, relative), "containerd.cni_plugin_dirs", "a list of absolute paths")
	ch.expect(!slices.ContainsFunc(c.AllowedMounts, relative), "containerd.allowed_mounts", "a list of absolute paths")
}

func (ch *checker) storage() {
	s := ch.Storage
	if !ch.embedded() {
		ch.reject("storage.url", urlProblem(s.URL, "access_key and secret_key", false))
		ch.missing("storage.access_key", "the access key of the S3 storage")
		if s.SecretKeyFile == "" {
			ch.missing("storage.secret_key", "the secret key of the S3 storage")
		}
		for _, key := range []string{"storage.listen", "storage.path", "storage.domain", "storage.cors_origins", "storage.min_free"} {
			if ch.at(key) != nil {
				ch.reject(key, "belongs to the embedded storage, which there is only without storage.url; remove one of them")
			}
		}
	} else {
		if s.AccessKey != "" && s.SecretKeyFile == "" {
			ch.missing("storage.secret_key", "a secret key for the access key")
		}
		if !s.SecretKey.IsZero() || s.SecretKeyFile != "" {
			ch.missing("storage.access_key", "an access key for the secret key")
		}
		ch.expect(validAddress(s.Listen), "storage.listen", "HOST:PORT such as 127.0.0.1:7000 (port 0 for a free one)")
		for _, key := range []string{"storage.session_token", "storage.ca_file", "storage.addressing"} {
			if ch.at(key) != nil {
				ch.reject(key, "belongs to a storage elsewhere, which storage.url names; add storage.url, or remove this")
			}
		}
	}
	ch.notEmpty("storage.public_url", s.PublicURL == "")
	if s.PublicURL != "" {
		ch.reject("storage.public_url", urlProblem(s.PublicURL, "access_key and secret_key", false))
	}
	ch.keep()
	ch.expect(s.KeepUploads >= time.Minute && s.KeepUploads <= job.MaxKeep, "storage.keep_uploads", "a duration, 1m or longer")
	ch.expect(s.MaxUpload > 0, "storage.max_upload", "a size, 1B or more")
	ch.notEmpty("storage.session_token", s.SessionToken.IsZero())
	ch.notEmpty("storage.ca_file", s.CAFile == "")
	ch.expect(s.CAFile == "" || filepath.IsAbs(s.CAFile), "storage.ca_file", "an absolute path")
	if s.Addressing != "" {
		ch.word("storage.addressing", s.Addressing, []string{"auto", "path", "host"})
	}
	ch.expect(!slices.ContainsFunc(s.Domains, func(d string) bool { return !validHost(d) }), "storage.domain", "host names such as s3.example.com")
	ch.expect(!slices.ContainsFunc(s.CORSOrigins, func(o string) bool { return o != "*" && !validOrigin(o) }), "storage.cors_origins",
		"origins of web pages such as https://app.example.com, or *")
	if !s.SecretKey.IsZero() && s.SecretKeyFile != "" {
		ch.reject("storage.secret_key_file", "is there beside storage.secret_key; remove one of them")
	}
	ch.notEmpty("storage.secret_key_file", s.SecretKeyFile == "")
	ch.expect(s.SecretKeyFile == "" || filepath.IsAbs(s.SecretKeyFile), "storage.secret_key_file", "an absolute path")
	ch.notEmpty("storage.access_key", s.AccessKey == "")
	ch.notEmpty("storage.secret_key", s.SecretKey.IsZero())
	ch.expect(s.Bucket == "" || bucketname.Valid(s.Bucket), "storage.bucket",
		"a bucket's name: 3 to 63 of a-z, 0-9, . and -, a letter or digit first, last and beside every dot, and no IP address")
}

// Limits of a node's lease: with a shorter one, a short pause of the machine or the network
// costs a node its jobs; with a longer one, the jobs of a dead node wait for hours.
const (
	minLease = 4 * time.Second
	maxLease = time.Hour
)

func (ch *checker) ledger() {
	l := ch.Ledger
	ch.expect(l.Keep > 0, "ledger.keep", "a duration longer than 0")
	ch.expect(l.KeepJobs > 0, "ledger.keep_jobs", "a whole number, 1 or more")
	ch.expect(l.EventKeep > 0, "ledger.event_keep", "a duration longer than 0")
	ch.expect(l.EventNumber > 0, "ledger.event_number", "a whole number, 1 or more")
	ch.notEmpty("ledger.url", l.URL.IsZero())
	ch.notEmpty("ledger.direct_url", l.DirectURL.IsZero())
	ch.notEmpty("ledger.password_file", l.PasswordFile == "")
	if ch.at("ledger.url") == nil {
		for _, key := range []string{"ledger.direct_url", "ledger.password_file", "ledger.lease"} {
			ch.reject(key, "belongs to a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		}
		return
	}
	ch.reject("ledger.path", "is the SQLite file's, which there is only without ledger.url; remove one of them")
	ch.databaseURL("ledger.url", &ch.Ledger.URL)
	ch.databaseURL("ledger.direct_url", &ch.Ledger.DirectURL)
	ch.expect(l.PasswordFile == "" || filepath.IsAbs(l.PasswordFile), "ledger.password_file", "an absolute path")
	ch.expect(l.Lease == nil || *l.Lease >= minLease && *l.Lease <= maxLease, "ledger.lease",
		fmt.Sprintf("a duration from %s to %s", job.FormatDuration(minLease), job.FormatDuration(maxLease)))
}

// fleet checks the section fleet.
func (ch *checker) fleet() {
	f := ch.Fleet
	ch.labels(ch.at("fleet.labels"), "fleet.labels", f.Labels)
	if ch.at("ledger.url") == nil {
		ch.reject("models.nodes", "chooses among nodes that share a ledger in a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		ch.reject("fleet", "is for nodes that share a ledger in a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		return
	}
	ch.notEmpty("fleet.address", f.Address == "")
	ch.notEmpty("fleet.secret_file", f.SecretFile == "")
	ch.notEmpty("fleet.ca_file", f.CAFile == "")
	address, err := url.Parse(f.Address)
	ch.expect(f.Address == "" || err == nil && (address.Scheme == "http" || address.Scheme == "https") && address.Host != "" && address.User == nil &&
		strings.Trim(address.Path, "/") == "" && address.RawQuery == "" && address.Fragment == "", "fleet.address", "http://HOST[:PORT] or https://HOST[:PORT]")
	ch.expect(f.SecretFile == "" || filepath.IsAbs(f.SecretFile), "fleet.secret_file", "an absolute path")
	ch.expect(f.CAFile == "" || filepath.IsAbs(f.CAFile), "fleet.ca_file", "an absolute path")
}

// labels checks a list of KEY=VALUE with distinct keys.
func (ch *checker) labels(list *node, path string, labels []string) {
	seen := map[string]bool{}
	for i, text := range labels {
		key, value, found := strings.Cut(text, "=")
		switch err := job.ValidateLabel(key, value); {
		case !found:
			ch.item(list, i, path, "has no =; expected KEY=VALUE")
		case err != nil:
			ch.item(list, i, path, err.Error())
		case seen[key]:
			ch.item(list, i, path, fmt.Sprintf("the key %s is there twice", key))
		}
		seen[key] = true
	}
}

// databaseURL checks the URL of a database, and makes it print without its password. No
// message shows it.
func (ch *checker) databaseURL(path string, address *Secret) {
	const expected = "expected postgres://USER@HOST[:PORT]/DATABASE"
	text := address.Reveal()
	scheme, _, found := strings.Cut(text, "://")
	switch {
	case text == "":
	case !found || scheme != "postgres" && scheme != "postgresql":
		ch.reject(path, "is not the URL of a PostgreSQL database; "+expected)
	case ch.ledgerURL != nil:
		if err := ch.ledgerURL(text); err != nil {
			ch.reject(path, err.Error())
			return
		}
	}
	if text != "" {
		*address = address.shownAs(redactURL(text))
	}
	if ch.Ledger.PasswordFile != "" && holdsPassword(text) {
		ch.reject(path, "holds a password, and ledger.password_file is there beside it; remove one of them")
	}
}

func (ch *checker) notEmpty(path string, empty bool) {
	if empty && ch.at(path) != nil {
		ch.reject(path, "is empty; expected a value")
	}
}

// validOrigin reports whether s is the origin of a web page: scheme, host and
// port, and nothing behind them.
func validOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && validHost(u.Hostname()) && s == u.Scheme+"://"+u.Host
}

func validAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	p, err := strconv.Atoi(port)
	return err == nil && validPort(p) && validHost(host)
}

// urlProblem describes what is wrong with the URL of a service; empty for a valid one. It
// does not show the URL, because people put credentials into URLs.
func urlProblem(address, credentials string, path bool) string {
	const expected = "expected http://HOST[:PORT] or https://HOST[:PORT]"
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "not an address; " + expected
	case u.User != nil:
		return "holds credentials; put them into " + credentials
	case u.Scheme != "http" && u.Scheme != "https":
		return "has a scheme other than http and https; " + expected
	case !validHost(u.Hostname()):
		return "has no valid host; " + expected
	case u.Port() == "" && strings.HasSuffix(u.Host, ":"):
		return "has no port after the colon; " + expected
	case u.Port() != "":
		if p, err := strconv.Atoi(u.Port()); err != nil || p < 1 || p > 65535 {
			return "has no valid port; " + expected
		}
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || !path && strings.Trim(u.Path, "/") != "" {
		return "has more than a host and a port; " + expected
	}
	return ""
}

var levels = []string{"debug", "info", "warning", "error"}

// logging accepts levels in any case, and also the names of Python's logging.
func (ch *checker) logging() {
	level := strings.ToLower(ch.Logging.Level)
	switch level {
	case "warn":
		level = "warning"
	case "critical", "fatal":
		level = "error"
	}
	ch.Logging.Level = level
	ch.word("logging.level", level, levels)
	ch.word("logging.format", ch.Logging.Format, []string{"auto", "text", "json", "journal"})
}

// word reports a value that is not one of the known words.
func (ch *checker) word(path, value string, known []string) {
	n := ch.at(path)
	if slices.Contains(known, value) || n == nil || ch.problems.cover(n, path) {
		return
	}
	if n.referred {
		value = "" // no suggestion for a value that must not be shown
	}
	ch.wrong(n, path, "%s is not known here; %s", n.shown(), suggest(value, known))
}
