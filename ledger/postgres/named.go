package postgres

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
)

// named caches statements whose argument names were replaced by numbers: pgx takes as long
// for that as for the rest of a call.
type named struct{ statements sync.Map } // of text to *statement

// statement is one with numbers, and the names of its arguments in their order.
type statement struct {
	text  string
	names []string
}

// bind returns named arguments for a statement that is sent often.
func (n *named) bind(args pgx.NamedArgs) pgx.QueryRewriter { return bound{n, args} }

type bound struct {
	known *named
	args  pgx.NamedArgs
}

// RewriteQuery implements pgx.QueryRewriter as pgx.NamedArgs does.
func (b bound) RewriteQuery(ctx context.Context, conn *pgx.Conn, sql string, _ []any) (string, []any, error) {
	found, ok := b.known.statements.Load(sql)
	if !ok {
		s := &statement{}
		names := pgx.NamedArgs{}
		for name := range b.args {
			names[name] = name
		}
		text, inOrder, err := names.RewriteQuery(ctx, conn, sql, nil)
		if err != nil {
			return "", nil, err
		}
		s.text = text
		for _, name := range inOrder {
			name, _ := name.(string) // nil is of one that is not given, which is NULL
			s.names = append(s.names, name)
		}
		found, _ = b.known.statements.LoadOrStore(sql, s)
	}
	s := found.(*statement)
	args := make([]any, len(s.names))
	for i, name := range s.names {
		args[i] = b.args[name]
	}
	return s.text, args, nil
}
