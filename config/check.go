package config

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// checker validates the values of a decoded file. Each section has a function that checks
// it; the methods check values that depend on several sections.
type checker struct {
	*Config
	*report
	file      string // path of the main file
	directory string // base of relative paths
}

// all checks everything except the types of sheep. ledgerURL checks the URL of a database.
func (ch *checker) all(ledgerURL func(string) error) {
	r := ch.report
	r.missing("data_root", "the directory in which sheep keep the files of jobs")
	ch.paths()
	ch.keptPaths()
	r.expect(nodeName.MatchString(ch.Node), "node", "a name of A-Z, a-z, 0-9, _, . and -, a letter or digit first")
	checkAPI(r, &ch.API)
	checkRegistry(r, ch.Registry)
	checkModels(r, &ch.Models)
	checkContainerd(r, &ch.Containerd)
	checkStorage(r, &ch.Storage)
	checkLedger(r, &ch.Ledger, ledgerURL)
	checkFleet(r, &ch.Fleet)
	checkWebhooks(r, &ch.Webhooks)
	checkLogging(r, &ch.Logging)
	checkScheduling(r, &ch.Scheduling)
	r.limits(ch.at("limits"), "limits", ch.Limits)
	checkGPU(r, &ch.GPU)
	ch.devices()
	r.expect(ch.DrainTimeout >= 0, "drain_timeout", "a duration, 0s or longer")
	r.word("on_exit", ch.OnExit, []string{"stop", "leave"})
	ch.ports()
}

// A node's name is a label of metrics and part of records.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$`)

// RFC 1123 has no underscores, but host names of containers do.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?$`)

func validHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || hostName.MatchString(s)
}

func validPort(p int) bool { return p >= 0 && p <= 65535 }

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

// checkLogging accepts levels in any case, and also the names of Python's logging.
func checkLogging(r *report, l *Logging) {
	level := strings.ToLower(l.Level)
	switch level {
	case "warn":
		level = "warning"
	case "critical", "fatal":
		level = "error"
	}
	l.Level = level
	r.word("logging.level", level, levels)
	r.word("logging.format", l.Format, []string{"auto", "text", "json", "journal"})
}
