package sqlite

import (
	"context"
	"database/sql"
)

// session runs the statements of one transaction. Many callers share it, so the statements
// do not run under a caller's context.
type session struct {
	stmts  *statements
	writes int  // statements that wrote
	ran    int  // statements in all
	failed bool // a statement failed: the transaction cannot be committed
}

// exec runs a statement that writes.
func (c *session) exec(s *sql.Stmt, args ...any) (sql.Result, error) {
	c.writes++
	c.ran++
	result, err := s.ExecContext(context.Background(), args...)
	c.failed = c.failed || err != nil
	return result, err
}

// query calls each for every row found.
func (c *session) query(each func(scan func(...any) error) error, s *sql.Stmt, args ...any) error {
	c.ran++
	err := func() error {
		rows, err := s.QueryContext(context.Background(), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := each(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	}()
	c.failed = c.failed || err != nil
	return err
}

// queryOne reads one row; found is false where there is none.
func (c *session) queryOne(into []any, s *sql.Stmt, args ...any) (found bool, err error) {
	err = c.query(func(scan func(...any) error) error {
		found = true
		return scan(into...)
	}, s, args...)
	return found, err
}

func (c *session) queryJobs(s *sql.Stmt, args ...any) ([]*row, error) {
	var found []*row
	err := c.query(func(scan func(...any) error) error {
		r := new(row)
		found = append(found, r)
		return r.scan(scan)
	}, s, args...)
	return found, err
}
