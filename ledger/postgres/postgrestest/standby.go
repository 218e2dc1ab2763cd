package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Allow lets all users in who come from a network, on a server that listens at an address.
func (s *Server) Allow(network string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "host all all %s trust\n", network)
	return errors.Join(err, f.Close(), s.Exec(context.Background(), "postgres", "SELECT pg_reload_conf()"))
}

// Standby starts a server that follows this one: what is committed from then on is on both
// before it is answered. The caller stops it.
func (s *Server) Standby(ctx context.Context) (_ *Server, err error) {
	other := &Server{bin: s.bin, Port: s.Port}
	if other.dir, err = os.MkdirTemp("", "postgres-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, other.Close())
		}
	}()
	if err := other.unprivileged(); err != nil {
		return nil, err
	}
	copied := other.command("pg_basebackup", "-D", other.data(), "-h", s.dir, "-p", s.Port, "-U", Superuser, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	if out, err := copied.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	other.args = []string{"-D", other.data(), "-k", other.dir}
	other.Set(append([]string{"listen_addresses="}, settingsOf(s.args)...)...)
	if err := other.Restart(); err != nil {
		return nil, err
	}
	if err := s.Exec(ctx, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'"); err != nil {
		return nil, err
	}
	return other, s.Exec(ctx, "postgres", "SELECT pg_reload_conf()")
}

// settingsOf are those of a server's arguments.
func settingsOf(args []string) (settings []string) {
	for i, arg := range args {
		if arg == "-c" {
			settings = append(settings, args[i+1])
		}
	}
	return settings
}

// Promote makes a standby a server that takes changes.
func (s *Server) Promote(ctx context.Context) error {
	promoting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.Exec(promoting, "postgres", "SELECT pg_promote()")
}
