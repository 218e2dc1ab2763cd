package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/storage/embedded"
	"github.com/iterait/shepherd/storage/s3"
)

func openLedger(ctx context.Context, cfg *config.Config, log *slog.Logger, stop *closers) (ledger.Ledger, error) {
	l, err := sqlite.Open(ctx, sqlite.Config{
		Path: cfg.Ledger.Path, Keep: cfg.Ledger.Keep, KeepJobs: cfg.Ledger.KeepJobs,
		MaxOvertakes: cfg.Scheduling.MaxOvertakes, Log: log,
	})
	if err != nil {
		return nil, err
	}
	stop.add(func() {
		if err := l.Close(); err != nil {
			log.Error("Cannot close the ledger", "error", err)
		}
	})
	return l, nil
}

// openStorage is a client of the configured storage. It starts the embedded storage
// first where that is what is configured.
func openStorage(cfg *config.Config, observe func(string, time.Duration, error), log *slog.Logger, stop *closers) (*s3.Store, error) {
	c := cfg.Storage
	url := c.URL
	access, secret, err := StorageKeys(c)
	if err != nil {
		return nil, err
	}
	if c.Embedded() {
		server, err := embedded.Open(embedded.Config{Dir: c.Path, Listen: c.Listen, AccessKey: access, SecretKey: secret, Log: log})
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx) }()
		stop.add(func() {
			cancel()
			if err := errors.Join(<-served, server.Close()); err != nil {
				log.Error("The embedded storage cannot be closed", "error", err)
			}
		})
		url = "http://" + server.Addr()
		log.Info("Embedded storage is available at "+url, "path", c.Path)
	}
	store, err := s3.New(s3.Config{
		URL: url, AccessKey: access, SecretKey: secret, Bucket: c.Bucket, Region: c.Region,
		Begun: filepath.Join(cfg.StateDir, "begun"), Observe: observe, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if c.Embedded() && c.Bucket != "" {
		if err := store.MakeBucket(context.Background()); err != nil {
			return nil, err
		}
	}
	return store, nil
}

// StorageKeys are the keys of the storage: the configured ones or, where none are,
// those that the embedded storage has generated.
func StorageKeys(c config.Storage) (access, secret string, err error) {
	if c.Embedded() && c.AccessKey == "" {
		return embedded.Credentials(c.Path)
	}
	if c.SecretKeyFile == "" {
		return c.AccessKey, c.SecretKey.Reveal(), nil
	}
	if secret, err = firstLine(c.SecretKeyFile); err != nil {
		return "", "", fmt.Errorf("storage.secret_key_file: %w; put the key there, readable for the daemon alone", err)
	}
	return c.AccessKey, secret, nil
}

// logStorageState logs whether storage answers. The daemon starts in any case: jobs
// wait until storage answers.
func logStorageState(ctx context.Context, store *s3.Store, cfg *config.Config, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := store.Ping(ctx); err != nil {
		log.Error("The remote storage is not accessible", "url", cfg.Storage.URL, "error", err)
		return
	}
	log.Info("Minio storage appears to be up and running")
}

// nodeName is the name under which this daemon holds jobs in the ledger. It is kept
// in the state directory, so that a machine that is renamed finds its jobs again.
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
	tmp := path + ".new"
	if err := writeSynced(tmp, name+"\n"); err != nil {
		return "", fmt.Errorf("keep the node's name: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("keep the node's name: %w", err)
	}
	return name, nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// firstLine reads a secret from its file.
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
