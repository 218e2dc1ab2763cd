package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/containerd/errdefs"
)

// connectTime bounds a connection attempt where the URL has no connect_timeout.
const connectTime = 10 * time.Second

// migrateTime bounds the migrations, and the wait for another daemon that makes them.
const migrateTime = 10 * time.Minute

// applicationName is what the server's pg_stat_activity calls us, where the URL has no
// application_name.
const applicationName = "shepherd"

// Open opens the ledger in the database that cfg.URL names, and creates or migrates
// its tables. The caller closes the ledger.
//
// An error names the server and what to do, and never has a password: the URL cannot
// be read, the database cannot be reached or does not exist, the user is not let in,
// or the tables were written by a newer shepherd.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	pooled, err := parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	direct, err := parse(cfg.DirectURL)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l := newLedger(cfg, addressOf(pooled))
	l.maintenance = newMaintenance(l)
	l.bell = newBell(l.connectDirect(direct.ConnConfig), cfg.Log)
	if err := l.open(ctx, pooled); err != nil {
		l.closePools()
		return nil, explain(l.server, "open ledger", err)
	}
	return l, nil
}

// newLedger is a ledger without connections.
func newLedger(cfg Config, server string) *Ledger {
	db := &database{server: server, retryFor: cfg.RetryFor, idle: idleInTransaction}
	l := &Ledger{
		cfg: cfg, database: db, records: &records{db}, eventLog: &eventLog{database: db}, deliveries: &deliveries{db},
		clock: clock{keep: momentKept}, claiming: make(chan struct{}, 1),
	}
	l.uploads = &uploads{db, &l.leases}
	return l
}

func (l *Ledger) open(ctx context.Context, pooled *pgxpool.Config) (err error) {
	var listening *pgx.Conn
	err = l.retryWithin(ctx, migrateTime, func(ctx context.Context) (err error) {
		if listening, err = l.bell.connect(ctx); err != nil {
			return err
		}
		if err = migrate(ctx, listening, l.server, l.cfg.Log); err == nil {
			l.prepares, err = l.canPrepare(ctx, listening)
		}
		if err != nil {
			closeConn(listening)
		}
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			closeConn(listening)
		}
	}()
	if err = l.openPools(ctx, pooled); err != nil {
		return err
	}
	if err := l.retry(ctx, l.findHorizon); err != nil {
		return err
	}
	// The ledger's age is brought up to date before the first run ends: one that ended
	// at an age of long ago would be taken for old.
	if err := l.retry(ctx, l.maintenance.keepAge); err != nil {
		return err
	}
	l.maintenance.pulse.lastEvent = l.eventLog.horizon.settled
	l.bell.start(listening, func(ctx context.Context) error {
		return l.often(ctx, l.db, queryNotify, pgx.NamedArgs{"from": l.bell.me}, func(pgx.Rows) error { return nil })
	})
	l.maintenance.setTimer(time.Now())
	l.maintenance.start()
	return nil
}

// canPrepare reports whether the connections of the calls are to the server itself, as one
// of them shows: a pooler has told it the process of another.
func (l *Ledger) canPrepare(ctx context.Context, conn *pgx.Conn) (bool, error) {
	if l.cfg.DirectURL != l.cfg.URL || strings.Contains(l.cfg.URL, execMode) {
		return false, nil
	}
	var process uint32
	err := once(ctx, func(ctx context.Context) error { return conn.QueryRow(ctx, queryProcess).Scan(&process) })
	return process == conn.PgConn().PID(), err
}

// openPools opens the connections of the calls, and that of the pulse. The server takes longer
// to plan a statement than to run it, so what is sent often is prepared on each connection;
// through a pooler, the next statement may use another connection.
func (l *Ledger) openPools(ctx context.Context, pooled *pgxpool.Config) (err error) {
	pooled.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error { return l.setPassword(cfg) }
	if l.prepares {
		pooled.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, querySettings, pgx.QueryExecModeSimpleProtocol)
			return err
		}
	}
	own := pooled.Copy()
	own.MinConns, own.MinIdleConns = 0, 0
	own.MaxConns = 4 // one, beside those that are dead and not closed yet
	if l.maintenance.pulse.pool, err = pgxpool.NewWithConfig(ctx, own); err != nil {
		return err
	}
	if l.pool, err = pgxpool.NewWithConfig(ctx, pooled); err != nil {
		return err
	}
	l.db = l.pool
	return nil
}

// closePools closes the connections that openPools has opened.
func (l *Ledger) closePools() {
	for _, pool := range []*pgxpool.Pool{l.pool, l.maintenance.pulse.pool} {
		if pool != nil {
			pool.Close()
		}
	}
}

// setPassword has a connection use the password that Config.Password says.
func (l *Ledger) setPassword(cfg *pgx.ConnConfig) (err error) {
	if l.cfg.Password != nil {
		cfg.Password, err = l.cfg.Password()
	}
	return err
}

// connectDirect opens connections to the server itself.
func (l *Ledger) connectDirect(direct *pgx.ConnConfig) func(ctx context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		cfg := direct.Copy()
		if err := l.setPassword(cfg); err != nil {
			return nil, err
		}
		return pgx.ConnectConfig(ctx, cfg)
	}
}

// execMode is the setting of a URL by which pgx prepares statements, or does not.
const execMode = "default_query_exec_mode"

// parse reads a URL. Statements are not prepared, but for those that are sent often.
func parse(source string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(source)
	if err != nil {
		return nil, invalidURL(err)
	}
	if showsPassword(source, cfg.ConnConfig) {
		return nil, &urlError{"its password has characters that must be percent-encoded (@ as %40, / as %2F)"}
	}
	if !strings.Contains(source, execMode) {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = connectTime
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = applicationName
	}
	return cfg, nil
}

// showsPassword reports whether a part of the password was taken for the host or the
// database, which errors and logs name.
func showsPassword(source string, cfg *pgx.ConnConfig) bool {
	return strings.LastIndex(cfg.Host, "@") > 0 || // one at the beginning is an abstract socket's
		strings.Contains(cfg.Database, "@") && strings.Contains(source, "://") && !strings.Contains(source, "%40")
}

// invalidURL says what is wrong with a URL, without the URL.
func invalidURL(err error) error {
	var parse *pgconn.ParseConfigError
	var syntax *url.Error
	reason := "it cannot be read"
	if errors.As(err, &syntax) {
		reason = syntax.Err.Error()
	} else if errors.As(err, &parse) && errors.Unwrap(parse) != nil {
		reason = errors.Unwrap(parse).Error()
	}
	if strings.HasPrefix(reason, "missing \"=\"") { // goes on with the text, of a password perhaps
		reason = "a value with a space must be in single quotes"
	}
	return &urlError{reason}
}

// urlError says what is wrong with a URL, without the URL and its password.
type urlError struct{ reason string }

func (e *urlError) Error() string {
	return "the URL is not one of PostgreSQL (postgres://USER@HOST/DATABASE): " + e.reason
}

func (e *urlError) Unwrap() error { return errdefs.ErrInvalidArgument }

// CheckURL reports what is wrong with a URL, without the URL and its password. It asks
// no server; it reads the files of certificates that the URL names.
func CheckURL(source string) error {
	var wrong *urlError
	if _, err := parse(source); errors.As(err, &wrong) {
		return errors.New(wrong.reason)
	}
	return nil
}
