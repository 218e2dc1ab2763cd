package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

// bare is the URL of a database without tables.
func bare(t *testing.T) (name, url string) {
	t.Helper()
	name, err := server.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Drop(context.Background(), name) })
	return name, server.URL(name)
}

// TestMigrate has several daemons create the tables at the same time, takes the
// newest migration back, and makes it again.
func TestMigrate(t *testing.T) {
	name, url := bare(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			l, err := Open(t.Context(), Config{URL: url, RetryFor: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			l.Close()
		})
	}
	group.Wait()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMigrator(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	versions, err := newest()
	if err != nil {
		t.Fatal(err)
	}
	for range versions {
		if err := m.down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var left int
	err = conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relnamespace = 'shepherd'::regnamespace AND relname NOT LIKE 'schema_versions%'`).Scan(&left)
	if err != nil || left != 0 {
		t.Fatalf("%d objects are left, %v", left, err)
	}
	if err := errors.Join(m.up(t.Context(), slog.New(slog.DiscardHandler)), m.close()); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, Config{URL: url})
	if _, err := l.Create(t.Context(), job.Record{ID: "x", Model: red}); err != nil {
		t.Fatal(err)
	}
	l.Close()

	// A newer shepherd's.
	if _, err := conn.Exec(t.Context(), `INSERT INTO shepherd.schema_versions (version_id, is_applied) VALUES (99999, true)`); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	_, err = Open(t.Context(), Config{URL: url})
	var newer *newerError
	if !errors.As(err, &newer) || newer.schema != 99999 || !strings.Contains(err.Error(), name) {
		t.Errorf("Open answered %v", err)
	}
}

// TestMigrateBesideAnExport has a daemon migrate the tables while a long transaction reads
// them: it waits, and the other daemons go on meanwhile.
func TestMigrateBesideAnExport(t *testing.T) {
	_, url := bare(t)
	mustOpen(t, Config{URL: url}).Close()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMigrator(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.provider.DownTo(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	export, other, watch := connect(), connect(), connect()
	if _, err := export.Exec(t.Context(), `BEGIN; SELECT FROM shepherd.jobs`); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		l, err := Open(t.Context(), Config{URL: url})
		if err == nil {
			err = l.Close()
		}
		opened <- err
	}()
	for waits, end := false, time.Now().Add(hang); !waits; {
		if time.Now().After(end) {
			t.Fatal("the migration does not wait for the export")
		}
		if err := watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'shepherd.jobs'::regclass AND NOT granted)`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	reading := make(chan error, 1)
	go func() {
		_, err := other.Exec(t.Context(), `SELECT FROM shepherd.jobs`)
		reading <- err
	}()
	select {
	case err := <-reading:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(hang):
		t.Error("other daemons wait for the export, too")
	}
	if _, err := export.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	if err := await(t, opened, "the migration does not end"); err != nil {
		t.Error(err)
	}
}

// TestOpenErrors names the server and the next step, and never the password.
func TestOpenErrors(t *testing.T) {
	_, there := bare(t)
	standby, standbyURL := bare(t)
	mustOpen(t, Config{URL: standbyURL}).Close()
	if err := server.Exec(t.Context(), "postgres", "ALTER DATABASE "+standby+" SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	if err := server.Exec(t.Context(), "postgres", "CREATE ROLE nobody LOGIN"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Exec(context.Background(), "postgres", "DROP ROLE nobody"); err != nil {
			t.Error(err)
		}
	})
	refused := "postgres://user:secret@127.0.0.1:1/db"
	for name, c := range map[string]struct {
		url  string
		is   func(error) bool
		want []string
	}{
		"unreachable":           {refused, errdefs.IsUnavailable, []string{"127.0.0.1:1/db", "check that it runs"}},
		"no database":           {server.URL("nosuch"), errdefs.IsFailedPrecondition, []string{"nosuch", "create it"}},
		"no permission":         {strings.Replace(there, "user=postgres", "user=nobody", 1), errdefs.IsFailedPrecondition, []string{"no permission", "owned by the user"}},
		"standby":               {standbyURL, errdefs.IsUnavailable, []string{"it is a standby", "target_session_attrs"}},
		"no role":               {strings.Replace(there, "user=postgres", "user=nosuch", 1), errdefs.IsUnavailable, []string{"user and password"}},
		"no URL":                {"postgres://user:secret@host:port/db", errdefs.IsInvalidArgument, []string{"postgres://USER@HOST/DATABASE"}},
		"password with /":       {"postgres://user:12/secret@127.0.0.1:1/db", errdefs.IsInvalidArgument, []string{"percent-encoded"}},
		"password with @":       {"postgres://user:x@secret@127.0.0.1:1/db", errdefs.IsInvalidArgument, []string{"percent-encoded"}},
		"password with a space": {"user=user password=very secret host=127.0.0.1", errdefs.IsInvalidArgument, []string{"single quotes"}},
		"no setting":            {"postgres://user:secret@host/db?sslmode=sometimes", errdefs.IsInvalidArgument, []string{"sslmode"}},
	} {
		_, err := Open(t.Context(), Config{URL: c.url, RetryFor: time.Millisecond})
		if !c.is(err) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range append(c.want, "") {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

// TestTLS reaches the server by TLS with a certificate that is checked, and a password
// from a file.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	own, err := postgrestest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, statement := range []string{"CREATE ROLE shepherd LOGIN PASSWORD 'wool:1'", "CREATE DATABASE jobs OWNER shepherd"} {
		if err := own.Exec(t.Context(), "postgres", statement); err != nil {
			t.Fatal(err)
		}
	}
	own.Stop()
	data := filepath.Join(own.Dir(), "data")
	write := func(path string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if as := own.As(); as != nil && strings.HasPrefix(path, data) {
			if err := os.Chown(path, int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(filepath.Join(data, "server.crt"), cert)
	write(filepath.Join(data, "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	write(filepath.Join(data, "pg_hba.conf"), []byte("local all postgres trust\nhostssl all shepherd 127.0.0.1/32 scram-sha-256\n"))
	own.Set("ssl=on", "listen_addresses=127.0.0.1")
	for tries := 0; ; tries++ { // another program may take a port that was free
		own.Port = strconv.Itoa(testenv.FreePort(t))
		own.Set("port=" + own.Port)
		if err := own.Restart(); err == nil {
			break
		} else if tries == 10 {
			t.Fatal(err)
		}
	}
	port := own.Port
	ca, pass := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "pass")
	write(ca, cert)
	write(pass, []byte("127.0.0.1:"+port+":jobs:shepherd:wool\\:1\n"))
	query := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca}, "passfile": {pass}}
	l := mustOpen(t, Config{URL: "postgres://shepherd@127.0.0.1:" + port + "/jobs?" + query.Encode()})
	if _, err := l.Create(t.Context(), job.Record{ID: "x", Model: red}); err != nil {
		t.Fatal(err)
	}
	var tls bool
	if _, err := l.queryOne(t.Context(), `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`, nil, &tls); err != nil || !tls {
		t.Errorf("TLS is used: %t, %v", tls, err)
	}
}

// TestPooler works through pgbouncer in transaction mode, where each statement may be
// another connection's; LISTEN and the migrations have a connection to the server.
func TestPooler(t *testing.T) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; os.Getenv("CI") == "" {
			if _, err := os.Stat(program); err != nil {
				t.Skip("pgbouncer is not installed: test/deps installs it")
			}
		}
	}
	name, direct := bare(t)
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := fmt.Sprintf(`[databases]
%[1]s = host=%[2]s dbname=%[1]s user=postgres
[pgbouncer]
unix_socket_dir = %[3]s
listen_addr =
listen_port = 6432
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 100
logfile = %[3]s/log
`, name, server.Dir(), dir)
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, file)
	attr := syscall.SysProcAttr{}
	if as := server.As(); as != nil {
		attr = *as
		for _, path := range []string{dir, file} {
			if err := os.Chown(path, int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	pooled := "postgres:///" + name + "?host=" + dir + "&port=6432&user=postgres&sslmode=disable"
	nodes := []*Ledger{}
	for range 2 {
		nodes = append(nodes, mustOpen(t, Config{URL: pooled, DirectURL: direct, Lease: longLease, RetryFor: time.Minute}))
	}
	if nodes[0].prepares {
		t.Error("statements are prepared on connections of a pooler")
	}
	if l := mustOpen(t, Config{URL: pooled, Lease: longLease}); l.prepares {
		t.Error("a pooler that is not named as one is taken for the server")
	}
	if l := mustOpen(t, Config{URL: direct, Lease: longLease}); !l.prepares {
		t.Error("statements are not prepared on connections to the server")
	}
	ctx := t.Context()
	start, err := nodes[0].Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const jobs = 40
	var group sync.WaitGroup
	for i, l := range nodes {
		group.Go(func() {
			if _, err := l.Join(ctx, fmt.Sprint("node", i)); err != nil {
				t.Error(err)
			}
			for n := range jobs / len(nodes) {
				if _, err := l.Create(ctx, job.Record{ID: job.ID(fmt.Sprint("job-", i, "-", n)), Model: red}); err != nil {
					t.Error(err)
				}
				c, err := l.Claim(ctx, ledger.Slot{Node: fmt.Sprint("node", i), Sheep: "a", Except: []job.Model{{Name: "other"}}})
				if err != nil || c == nil {
					t.Errorf("Claim = %v, %v", c, err)
					continue
				}
				if _, err := l.Finish(ctx, c.ID, c.Token, done); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := 0; n < 3*jobs && !t.Failed(); { // with the doorbell
		changed := nodes[0].Changed()
		events, next, err := nodes[0].Events(ctx, start, ledger.EventFilter{}, 50)
		if err != nil {
			t.Fatal(err)
		}
		start = next
		if n += len(events); len(events) == 0 {
			await(t, changed, fmt.Sprintf("%d of %d events came", n, 3*jobs))
		}
	}
	group.Wait()
}

// TestPreparedAnew has what the server knows of prepared statements change under them: a
// migration by a newer node changes the type of a column, and all are dropped.
func TestPreparedAnew(t *testing.T) {
	name, err := server.Create(t.Context(), template) // not to be used again
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Drop(context.Background(), name) })
	l := mustOpen(t, Config{URL: server.URL(name) + "&pool_max_conns=1", Lease: longLease})
	if !l.prepares {
		t.Fatal("statements are not prepared")
	}
	if _, err := l.Create(t.Context(), job.Record{ID: "job", Model: red}); err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{
		`ALTER TABLE shepherd.jobs ALTER COLUMN trace_state TYPE varchar`,
		`DEALLOCATE ALL`,
	} {
		if _, err := l.Get(t.Context(), "job"); err != nil {
			t.Fatal(err)
		}
		if _, err := l.pool.Exec(t.Context(), change, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Get(t.Context(), "job"); err != nil {
			t.Errorf("after %s: %v", change, err)
		}
	}
}

// TestOpenFaults cuts the connection at every statement of Open: it tries again.
func TestOpenFaults(t *testing.T) {
	p := newProxy(t, newDatabase(t))
	for n, came := 1, true; came; n++ {
		p.arm(n, neverSent)
		l, err := Open(t.Context(), Config{URL: p.url, Lease: longLease, Poll: time.Hour, RetryFor: time.Minute})
		if err != nil {
			t.Fatalf("statement %d: %v", n, err)
		}
		if came = p.disarm(); !l.prepares {
			t.Errorf("statement %d: none is prepared", n)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
