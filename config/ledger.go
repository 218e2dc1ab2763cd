package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// Limits of a node's lease: with a shorter one, a short pause of the machine or the network
// costs a node its jobs; with a longer one, the jobs of a dead node wait for hours.
const (
	minLease = 4 * time.Second
	maxLease = time.Hour
)

// checkLedger checks the section ledger. check checks the URL of a database.
func checkLedger(r *report, l *Ledger, check func(string) error) {
	r.expect(l.Keep > 0, "ledger.keep", "a duration longer than 0")
	r.expect(l.KeepJobs > 0, "ledger.keep_jobs", "a whole number, 1 or more")
	r.expect(l.EventKeep > 0, "ledger.event_keep", "a duration longer than 0")
	r.expect(l.EventNumber > 0, "ledger.event_number", "a whole number, 1 or more")
	r.notEmpty("ledger.url", l.URL.IsZero())
	r.notEmpty("ledger.direct_url", l.DirectURL.IsZero())
	r.notEmpty("ledger.password_file", l.PasswordFile == "")
	if r.at("ledger.url") == nil {
		for _, key := range []string{"ledger.direct_url", "ledger.password_file", "ledger.lease"} {
			r.reject(key, "belongs to a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		}
		return
	}
	r.reject("ledger.path", "is the SQLite file's, which there is only without ledger.url; remove one of them")
	checkDatabaseURL(r, l, "ledger.url", &l.URL, check)
	checkDatabaseURL(r, l, "ledger.direct_url", &l.DirectURL, check)
	r.expect(l.PasswordFile == "" || filepath.IsAbs(l.PasswordFile), "ledger.password_file", "an absolute path")
	r.expect(l.Lease == nil || *l.Lease >= minLease && *l.Lease <= maxLease, "ledger.lease",
		fmt.Sprintf("a duration from %s to %s", job.FormatDuration(minLease), job.FormatDuration(maxLease)))
}

// checkDatabaseURL checks the URL of a database, and makes it print without its password.
// No message shows it.
func checkDatabaseURL(r *report, l *Ledger, path string, address *Secret, check func(string) error) {
	const expected = "expected postgres://USER@HOST[:PORT]/DATABASE"
	text := address.Reveal()
	scheme, _, found := strings.Cut(text, "://")
	switch {
	case text == "":
	case !found || scheme != "postgres" && scheme != "postgresql":
		r.reject(path, "is not the URL of a PostgreSQL database; "+expected)
	case check != nil:
		if err := check(text); err != nil {
			r.reject(path, err.Error())
			return
		}
	}
	if text != "" {
		*address = address.shownAs(redactURL(text))
	}
	if l.PasswordFile != "" && holdsPassword(text) {
		r.reject(path, "holds a password, and ledger.password_file is there beside it; remove one of them")
	}
}

// checkFleet checks the section fleet.
func checkFleet(r *report, f *Fleet) {
	r.labels(r.at("fleet.labels"), "fleet.labels", f.Labels)
	if r.at("ledger.url") == nil {
		r.reject("models.nodes", "chooses among nodes that share a ledger in a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		r.reject("fleet", "is for nodes that share a ledger in a PostgreSQL database, which ledger.url names; add ledger.url, or remove this")
		return
	}
	r.notEmpty("fleet.address", f.Address == "")
	r.notEmpty("fleet.secret_file", f.SecretFile == "")
	r.notEmpty("fleet.ca_file", f.CAFile == "")
	address, err := url.Parse(f.Address)
	r.expect(f.Address == "" || err == nil && (address.Scheme == "http" || address.Scheme == "https") && address.Host != "" && address.User == nil &&
		strings.Trim(address.Path, "/") == "" && address.RawQuery == "" && address.Fragment == "", "fleet.address", "http://HOST[:PORT] or https://HOST[:PORT]")
	r.expect(f.SecretFile == "" || filepath.IsAbs(f.SecretFile), "fleet.secret_file", "an absolute path")
	r.expect(f.CAFile == "" || filepath.IsAbs(f.CAFile), "fleet.ca_file", "an absolute path")
}
