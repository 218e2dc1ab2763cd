// Package postgrestest starts PostgreSQL servers for tests and demonstrations, from
// Debian's package.
package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a PostgreSQL server in a directory of its own, reached by a socket there.
type Server struct {
	// Port names the socket, and is the port where the server listens at one.
	Port string

	dir  string // of everything
	bin  string
	as   *syscall.SysProcAttr
	args []string

	cmd    *exec.Cmd
	exited chan struct{}

	databases atomic.Int64
}

// Superuser is the name of the role that may do everything.
const Superuser = "postgres"

// ErrNotInstalled says that there is no PostgreSQL.
var ErrNotInstalled = errors.New("PostgreSQL is not installed (apt-get install postgresql): test/deps installs what the tests need")

// Start starts a server with the given settings ("name=value"). Durability is off
// where they do not say otherwise. The caller stops it.
func Start(settings ...string) (_ *Server, err error) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return nil, ErrNotInstalled
	}
	s := &Server{bin: slices.Max(bins), Port: "5432"}
	if s.dir, err = os.MkdirTemp("", "postgres-"); err != nil { // short: a socket's path has 107 bytes
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(s.dir)
		}
	}()
	if err := s.unprivileged(); err != nil {
		return nil, err
	}
	out, err := s.command("initdb", "-D", s.data(), "-U", Superuser, "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.args = []string{"-D", s.data(), "-k", s.dir}
	s.Set(append([]string{
		"listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=300", "shared_buffers=64MB",
		"log_min_messages=error", "jit=off", "max_wal_size=256MB",
	}, settings...)...)
	return s, s.Restart()
}

// New starts a server as Start does, for one test.
func New(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := Start(settings...)
	if errors.Is(err, ErrNotInstalled) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// unprivileged has the server's programs run as another user where this one is root,
// which they refuse.
func (s *Server) unprivileged() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(Superuser)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	s.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return os.Chown(s.dir, uid, gid)
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, s.as
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }
func (s *Server) log() string  { return filepath.Join(s.dir, "log") }

// Dir is the directory of the server's socket.
func (s *Server) Dir() string { return s.dir }

// As is how to run another program as the server's user; nil where there is no
// difference.
func (s *Server) As() *syscall.SysProcAttr { return s.as }

// Set sets settings ("name=value") that the server has from the next Restart on.
func (s *Server) Set(settings ...string) {
	for _, setting := range settings {
		s.args = append(s.args, "-c", setting)
	}
}

// Restart starts the server again, after Stop or Kill.
func (s *Server) Restart() error {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = s.command("postgres", s.args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	attr := syscall.SysProcAttr{}
	if s.as != nil {
		attr = *s.as
	}
	attr.Pdeathsig = syscall.SIGINT // should the tests be killed
	s.cmd.SysProcAttr = &attr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(cmd *exec.Cmd) {
		defer close(exited)
		_ = cmd.Wait()
	}(s.cmd)
	for range 3000 {
		conn, err := pgx.Connect(context.Background(), s.URL("postgres"))
		if err == nil {
			return conn.Close(context.Background())
		}
		select {
		case <-exited:
			said, _ := os.ReadFile(s.log())
			return fmt.Errorf("postgres ended at once: %s", said)
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.Kill()
	return errors.New("postgres does not answer")
}

// Stop ends the server as an administrator does who does not wait for clients, and
// removes nothing.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

// Kill ends the server and all its processes, as a power cut does but for the disk.
func (s *Server) Kill() { s.end(syscall.SIGQUIT) }

func (s *Server) end(signal syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(signal)
		<-s.exited
	}
}

// Close stops the server and removes its files.
func (s *Server) Close() error {
	s.Stop()
	return os.RemoveAll(s.dir)
}

// URL is that of a database, by the socket.
func (s *Server) URL(database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {s.dir}, "port": {s.Port}, "user": {Superuser}, "sslmode": {"disable"}}.Encode()
}

// Create creates a database, as a copy of the template where that is not empty, and
// returns its name.
func (s *Server) Create(ctx context.Context, template string) (string, error) {
	name := fmt.Sprint("test", s.databases.Add(1))
	query := "CREATE DATABASE " + name
	if template != "" {
		query += " TEMPLATE " + template
	}
	return name, s.Exec(ctx, "postgres", query)
}

// Drop drops a database, whoever is connected to it.
func (s *Server) Drop(ctx context.Context, name string) error {
	return s.Exec(ctx, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
}

// Exec runs a statement in a database.
func (s *Server) Exec(ctx context.Context, database, query string) error {
	conn, err := pgx.Connect(ctx, s.URL(database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, query); err != nil {
		return fmt.Errorf("%s: %w", strings.Fields(query)[0], err)
	}
	return nil
}

// CPUTime is what the server's processes have had of CPUs, those that have ended included.
func (s *Server) CPUTime() (time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil { // ended meanwhile
			continue
		}
		pid, rest, _ := strings.Cut(string(text), " (")
		fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:]) // from the state on
		used := fields[11:13]
		switch server := strconv.Itoa(s.cmd.Process.Pid); server {
		case pid:
			used = fields[11:15] // and that of its children which have ended
		case fields[1]:
		default:
			continue
		}
		for _, field := range used {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	const tick = 10 * time.Millisecond // of the kernel's interface, on every architecture that Go has
	return time.Duration(ticks) * tick, nil
}
