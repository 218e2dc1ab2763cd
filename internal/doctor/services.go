package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/errtext"
)

// Probe examines something that reports its own problems: storage, the registry, a
// running daemon.
type Probe struct {
	Title    string
	Success  string // the message if Ask succeeds
	Next     string // what to do if the error does not say it
	WarnOnly bool   // a failure is a Warning
	Ask      func(context.Context) error
}

// Name implements Check.
func (p Probe) Name() string { return p.Title }

// Examine implements Check.
func (p Probe) Examine(ctx context.Context) []Finding {
	err := p.Ask(ctx)
	level := Failure
	if p.WarnOnly {
		level = Warning
	}
	switch {
	case err == nil:
		return []Finding{ok("%s", p.Success)}
	case errors.Is(err, context.DeadlineExceeded):
		return []Finding{{Level: level, Message: fmt.Sprintf("there was no answer within %s", checkTime), Next: p.Next}}
	}
	return []Finding{fromError(level, err, p.Next)}
}

// Ledger examines the record of jobs.
type Ledger struct {
	Path string
	// Inspect checks the ledger and returns the number of its jobs and the time of its last
	// change. The error is of class NotFound when there is no ledger yet.
	Inspect func(context.Context) (jobs int, lastChange time.Time, err error)
}

// Name implements Check.
func (Ledger) Name() string { return "ledger" }

// Examine implements Check.
func (l Ledger) Examine(ctx context.Context) []Finding {
	jobs, lastChange, err := l.Inspect(ctx)
	switch {
	case errdefs.IsNotFound(err):
		return []Finding{ok("%s will be created when shepherdd first starts", l.Path)}
	case errdefs.IsInternal(err):
		return []Finding{failure("stop shepherdd, move the file and the files beside it away, and restore a backup (docs/operations.md); without a backup, start with an empty ledger: results stay in storage", "%s", errtext.Of(err))}
	case err != nil:
		return []Finding{fromError(Failure, err, "run it as the user that shepherdd runs as")}
	}
	findings := []Finding{ok("%s is intact, with %s", l.Path, plural(jobs, "job"))}
	if behind := time.Until(lastChange); behind > skewNoted {
		findings = append(findings, warning("set the clock (timedatectl set-ntp true); no job is lost, but times of jobs are wrong until then",
			"the clock is %s behind the ledger's last change (%s)", behind.Round(time.Second), lastChange.UTC().Format(time.RFC3339)))
	}
	return findings
}

// Clock examines the clock. Storage refuses requests if it is wrong by a quarter of an
// hour.
type Clock struct {
	// Storage is the address of a server to compare the clock with; it may be empty.
	Storage string
	Client  *http.Client
}

const (
	skewNoted   = 30 * time.Second
	skewRefused = 15 * time.Minute
)

// Name implements Check.
func (Clock) Name() string { return "time" }

// Examine implements Check.
func (c Clock) Examine(ctx context.Context) []Finding {
	var findings []Finding
	var state unix.Timex
	if _, err := unix.Adjtimex(&state); err == nil && state.Status&unix.STA_UNSYNC != 0 {
		findings = append(findings, warning("run timedatectl set-ntp true, or install chrony", "the clock is not synchronized, as the kernel reports"))
	}
	if c.Storage != "" {
		if skew, err := c.skew(ctx); err == nil { // the check of storage reports an error
			findings = append(findings, judgeSkew(skew)...)
		}
	}
	if len(findings) == 0 {
		findings = append(findings, ok("%s", time.Now().UTC().Format(time.RFC3339)))
	}
	return findings
}

// skew is how much the server's clock is ahead of ours.
func (c Clock) skew(ctx context.Context) (time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, c.Storage, nil)
	if err != nil {
		return 0, err
	}
	asked := time.Now()
	response, err := c.Client.Do(request)
	if err != nil {
		return 0, err
	}
	response.Body.Close()
	theirs, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return 0, err
	}
	// Date is truncated to the second, so it is half a second early on average.
	ours := asked.Add(time.Since(asked) / 2)
	return theirs.Add(500 * time.Millisecond).Sub(ours), nil
}

func judgeSkew(skew time.Duration) []Finding {
	const next = "set both clocks, for example with NTP (timedatectl set-ntp true)"
	direction := "behind"
	if skew < 0 {
		direction = "ahead of"
	}
	text := fmt.Sprintf("the clock here is %s %s that of storage", skew.Abs().Round(time.Second), direction)
	switch {
	case skew.Abs() >= skewRefused:
		return []Finding{failure(next, "%s, which refuses requests for it", text)}
	case skew.Abs() >= skewNoted:
		return []Finding{warning(next, "%s; from a quarter of an hour on it refuses requests", text)}
	}
	return nil
}

// Listeners examines where the API listens.
type Listeners struct {
	Host string
	Port int
	// Up means that the daemon is running and uses the port.
	Up bool
	// Guarded means that the API requires credentials.
	Guarded bool
	// AllOrigins means that scripts of web pages of any origin may read answers.
	AllOrigins bool
	// Others are further addresses that the daemon listens on, by configuration key.
	Others map[string]string
}

// Name implements Check.
func (Listeners) Name() string { return "api" }

// Examine implements Check.
func (d Listeners) Examine(ctx context.Context) []Finding {
	at := net.JoinHostPort(d.Host, fmt.Sprint(d.Port))
	var findings []Finding
	if !d.Up {
		findings = append(findings, free(ctx, "api.host and api.port", at)...)
		for _, key := range sorted(d.Others) {
			findings = append(findings, free(ctx, key, d.Others[key])...)
		}
	}
	ip := net.ParseIP(d.Host)
	if open := d.Host != "localhost" && (ip == nil || !ip.IsLoopback()); open && !d.Guarded {
		findings = append(findings, warning("require tokens (api.tokens, shepherdd token new) or client certificates (api.tls.client_ca_file), or set api.host to 127.0.0.1", "anyone who can connect to %s may submit jobs and read all results", at))
	}
	if d.AllOrigins && !d.Guarded {
		findings = append(findings, warning("set api.cors_origins to the origins of your own pages, or to []", "any web page opened in a browser that can connect to %s may read all results", at))
	}
	if len(findings) == 0 {
		findings = append(findings, ok("%s", at))
	}
	return findings
}

// free examines whether a process can listen on an address.
func free(ctx context.Context, key, at string) []Finding {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
	switch {
	case err == nil:
		listener.Close()
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return []Finding{warning("see what it is (ss -ltnp), unless systemd holds it for the service (systemctl status shepherdd.socket); set "+key+" to another",
			"something else listens on %s", at)}
	}
	return []Finding{failure("set "+key+" to an address of this machine that shepherdd may use", "nothing can listen on %s: %v", at, err)}
}

// Leftovers looks for files of sheep that are no longer configured, and for foreign files in
// the directories that shepherd cleans.
type Leftovers struct {
	Sheep []string // the configured ones
	// DataRoot has a directory for each sheep, which has a directory for each attempt with a
	// file called Mark. DataRoot may have other files, too.
	DataRoot, Mark string
	// StateDirs have a directory for each sheep, and nothing else.
	StateDirs []string
	Known     []string // directories in them that are not sheep's
}

// Name implements Check.
func (Leftovers) Name() string { return "leftovers" }

// Examine implements Check.
func (l Leftovers) Examine(context.Context) []Finding {
	var gone, foreign, unmarked []string
	for _, dir := range l.StateDirs {
		for _, name := range directories(dir) {
			if path := filepath.Join(dir, name); !slices.Contains(l.Sheep, name) && !slices.Contains(l.Known, path) {
				gone = append(gone, path)
			}
		}
	}
	for _, name := range directories(l.DataRoot) {
		path := filepath.Join(l.DataRoot, name)
		switch {
		case slices.Contains(l.Known, path) || strings.HasPrefix(name, "."):
		case slices.Contains(l.Sheep, name):
			unmarked = append(unmarked, l.unmarked(path)...)
		case l.ofSheep(path):
			gone = append(gone, path)
		default:
			foreign = append(foreign, path)
		}
	}
	var findings []Finding
	if len(gone) > 0 {
		findings = append(findings, warning("start shepherd once, which stops what still runs there; then remove them", "there are directories of sheep that are no longer configured: %s", some(gone)))
	}
	if len(foreign) > 0 {
		findings = append(findings, warning("give shepherd a directory of its own (data_root): a sheep with the name of one of these would use it", "data_root has directories that do not belong to shepherd, which leaves them alone: %s", some(foreign)))
	}
	if len(unmarked) > 0 {
		findings = append(findings, warning("remove them if they are not needed; shepherd leaves them alone", "there are directories with the names of attempts and without shepherd's mark (%s): %s", l.Mark, some(unmarked)))
	}
	if len(findings) == 0 {
		findings = append(findings, ok("no sheep that was removed from the configuration has left anything"))
	}
	return findings
}

// directories returns the names of the directories in dir; none if dir cannot be read, which
// Disks reports.
func directories(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// ofSheep reports whether a directory of the data root belonged to a sheep: it is empty, or
// has directories of attempts.
func (l Leftovers) ofSheep(path string) bool {
	entries, err := os.ReadDir(path)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(path, e.Name(), l.Mark)); err == nil {
			return true
		}
	}
	return len(entries) == 0
}

// unmarked returns the directories in a sheep's directory that have the name of an attempt
// but no mark.
func (l Leftovers) unmarked(sheep string) (paths []string) {
	for _, name := range directories(sheep) {
		path := filepath.Join(sheep, name)
		if _, err := os.Lstat(filepath.Join(path, l.Mark)); err != nil && strings.HasPrefix(name, "attempt-") {
			paths = append(paths, path)
		}
	}
	return paths
}

// some returns the first paths of a list as text.
func some(paths []string) string {
	const most = 5
	if more := len(paths) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:most], ", "), more)
	}
	return strings.Join(paths, ", ")
}
