package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/embedded"
	"github.com/iterait/shepherd/storage/s3"
)

// keptLedger is a ledger with all optional interfaces that the daemon needs.
type keptLedger interface {
	ledger.Ledger
	ledger.Retention
	ledger.Restorer
	ledger.Webhooks
	ledger.Uploads
}

// openLedger opens the configured ledger: the SQLite file or the PostgreSQL database. With
// alone, it excludes other nodes from the database.
func openLedger(ctx context.Context, cfg *config.Config, alone bool, log *slog.Logger, stop *closers) (keptLedger, error) {
	var l keptLedger
	if cfg.Ledger.Shared() {
		c := DatabaseConfig(cfg)
		c.Alone, c.Log = alone, log
		database, err := postgres.Open(ctx, c)
		if err != nil {
			return nil, err
		}
		l = database
	} else {
		file, err := sqlite.Open(ctx, sqlite.Config{
			Path: cfg.Ledger.Path, Keep: cfg.Ledger.Keep, KeepJobs: cfg.Ledger.KeepJobs,
			EventKeep: cfg.Ledger.EventKeep, EventNumber: cfg.Ledger.EventNumber, Retention: cfg.Storage.Keep.Retention().For, Policy: policyOf(cfg), Log: log,
		})
		if err != nil {
			return nil, err
		}
		l = file
	}
	stop.add(func() {
		if err := l.Close(); err != nil {
			log.Error("Cannot close the ledger", "error", err)
		}
	})
	return l, nil
}

// policyOf returns the ledger's policy: the limits of models and tenants, and fair share.
func policyOf(cfg *config.Config) ledger.Policy {
	s := cfg.Scheduling
	var p ledger.Policy
	if s.FairShare {
		p.HalfLife = s.ShareHalfLife
	}
	for _, m := range s.Models {
		p.Models = append(p.Models, ledger.ModelLimit{Models: m.Rule(), MaxRunning: m.MaxRunning})
	}
	for _, t := range s.Tenants {
		limit := ledger.TenantLimit{Tenant: t.Tenant, MaxRunning: t.MaxRunning, MaxQueued: t.MaxQueued}
		if t.Weight != nil {
			limit.Weight = *t.Weight
		}
		p.Tenants = append(p.Tenants, limit)
	}
	return p
}

// peersOf returns the membership of a shared ledger's nodes; nil if the ledger is not
// shared.
func peersOf(l keptLedger) shepherd.Peers {
	peers, _ := l.(shepherd.Peers)
	return peers
}

// DatabaseConfig returns the parameters of the configured PostgreSQL database.
func DatabaseConfig(cfg *config.Config) postgres.Config {
	l := cfg.Ledger
	c := postgres.Config{
		URL: l.URL.Reveal(), DirectURL: l.DirectURL.Reveal(), Lease: *l.Lease, Keep: l.Keep, KeepJobs: l.KeepJobs,
		EventKeep: l.EventKeep, EventNumber: l.EventNumber, Retention: cfg.Storage.Keep.Retention().For, Policy: policyOf(cfg),
	}
	if l.PasswordFile != "" {
		c.Password = func() (string, error) {
			password, err := firstLine(l.PasswordFile)
			if err != nil {
				return "", fmt.Errorf("ledger.password_file: %w; put the password there, readable only by the daemon: %w", err, errdefs.ErrFailedPrecondition)
			}
			return password, nil
		}
	}
	return c
}

// openStorage opens the configured storage: a client of an external one, or the embedded
// one, which it starts and which the daemon accesses without HTTP. address is where the
// embedded one listens; empty for an external one.
func openStorage(cfg *config.Config, observe func(string, time.Duration, error), log *slog.Logger, stop *closers) (_ storage.Store, address string, err error) {
	c := cfg.Storage
	access, secret, err := StorageKeys(c)
	if err != nil {
		return nil, "", err
	}
	if !c.Embedded() {
		store, err := s3.New(s3.Config{
			URL: c.URL, AccessKey: access, SecretKey: secret, SessionToken: c.SessionToken.Reveal(), CAFile: c.CAFile,
			Addressing: c.Addressing, Bucket: c.Bucket, Region: c.Region,
			Submissions: filepath.Join(cfg.StateDir, "submissions"), Shared: cfg.Ledger.Shared(), Observe: observe, Log: log,
		})
		return store, "", err
	}
	server, err := embedded.Open(embedded.Config{
		Dir: c.Path, Listen: c.Listen, AccessKey: access, SecretKey: secret, Domains: c.Domains, AllowedOrigins: c.CORSOrigins, MinFree: int64(*c.MinFree), Log: log,
	})
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	stop.add(func() {
		cancel()
		if err := errors.Join(<-served, server.Close()); err != nil {
			log.Error("Cannot close the embedded storage", "error", err)
		}
	})
	log.Info("Embedded storage is available at http://"+server.Addr(), "path", c.Path)
	store, err := server.Store(c.Bucket, observe)
	return store, server.Addr(), err
}

// presignerOf returns a presigner of URLs for clients; nil if the URL at which clients reach
// the storage is unknown.
func presignerOf(c config.Storage) (storage.Presigner, error) {
	if c.Embedded() && c.PublicURL == "" {
		return nil, nil
	}
	access, secret, err := StorageKeys(c)
	if err != nil {
		return nil, err
	}
	return signerAt(c, cmp.Or(c.PublicURL, c.URL), access, secret)
}

// signerAt returns a presigner for the storage at a URL.
func signerAt(c config.Storage, url, access, secret string) (*s3.Presigner, error) {
	return s3.NewPresigner(s3.Config{
		URL: url, AccessKey: access, SecretKey: secret, SessionToken: c.SessionToken.Reveal(),
		Addressing: c.Addressing, Bucket: c.Bucket, Region: c.Region,
	})
}

// StorageKeys returns the storage's keys: the configured ones or, if there are none, those
// that the embedded storage has generated.
func StorageKeys(c config.Storage) (access, secret string, err error) {
	if c.Embedded() && c.AccessKey == "" {
		return embedded.Credentials(c.Path)
	}
	if c.SecretKeyFile == "" {
		return c.AccessKey, c.SecretKey.Reveal(), nil
	}
	if secret, err = firstLine(c.SecretKeyFile); err != nil {
		return "", "", fmt.Errorf("storage.secret_key_file: %w; put the key there, readable only by the daemon", err)
	}
	return c.AccessKey, secret, nil
}

// Retries of storage that does not answer at the start: after firstPing, with doubling
// pauses up to longestPing. pingTime bounds each request.
const (
	firstPing   = 250 * time.Millisecond
	longestPing = 15 * time.Second
	pingTime    = 5 * time.Second
)

// reportStorage logs whether storage answers. The daemon starts in any case, and jobs wait
// for storage; its recovery is logged, too, unless the daemon stops first.
func reportStorage(ctx context.Context, ping func(context.Context) error, url string, log *slog.Logger, stop *closers) {
	ask := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		defer cancel()
		return ping(ctx)
	}
	const up = "Minio storage appears to be up and running" // the original's words
	err := ask(ctx)
	if err == nil {
		log.Info(up)
		return
	}
	log.Error("The storage does not answer; jobs wait until it does", "url", url, "error", err)
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() {
		for pause := firstPing; ; pause = min(2*pause, longestPing) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			if err := ask(ctx); err == nil {
				log.Info(up)
				return
			}
		}
	})
	stop.add(func() {
		cancel()
		asking.Wait()
	})
}

// nodeName returns this daemon's name in the ledger. It is kept in the state directory, so
// that a renamed machine still finds its jobs.
func nodeName(cfg *config.Config) (string, error) {
	path := filepath.Join(cfg.StateDir, "node")
	kept, err := os.ReadFile(path)
	if name := strings.TrimSpace(string(kept)); err == nil && name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	tail := make([]byte, 4)
	rand.Read(tail)
	name := cfg.Node + "-" + hex.EncodeToString(tail)
	if err := durable.WriteFile(path, []byte(name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the node's name: %w", err)
	}
	return name, nil
}

// keptNodeName returns the name of this machine's last daemon, or the configured name if
// none has run yet.
func keptNodeName(cfg *config.Config) string {
	kept, err := os.ReadFile(filepath.Join(cfg.StateDir, "node"))
	if name := strings.TrimSpace(string(kept)); err == nil && name != "" {
		return name
	}
	return cfg.Node
}

// firstLine reads a secret from the first line of a file.
func firstLine(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", fmt.Errorf("the first line of %s is empty", file)
	}
	return line, nil
}
