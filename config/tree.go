package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/iterait/shepherd/config/size"
)

// Limits of the input. A configuration has some kilobytes; the limits protect against other
// files, and against nested aliases and brackets that take excessive time and memory.
const (
	maxFile  = 256 << 10
	maxNodes = 100_000
	maxDepth = 64
)

type kind int

const (
	null kind = iota
	text
	number  // a whole one
	decimal // any other number
	boolean
	list
	mapping
	broken // already reported
)

func (k kind) String() string {
	return [...]string{"nothing", "a string", "a number", "a decimal number", "a boolean", "a list", "a mapping", "a broken value"}[k]
}

// node is a value of the file, with aliases and merge keys resolved and references to the
// environment expanded.
type node struct {
	kind         kind
	file         string // empty for the main one
	line, column int
	// text is a scalar's text: for a number or boolean as it is written.
	text string
	// written is the text before references were replaced, if it had any.
	written  string
	referred bool
	items    []*node // of a list
	entries  []entry // of a mapping, in the order of the file, keys unique
	size     int     // nodes from here down
}

type entry struct {
	key          string
	file         string
	line, column int
	value        *node
}

// where is the position of the key.
func (e *entry) where() *node { return &node{file: e.file, line: e.line, column: e.column} }

// merge overlays the values of another file: mappings are merged key by key, everything else
// is replaced. Keys without a value change nothing.
func (n *node) merge(over *node) {
	for _, e := range over.entries {
		if e.value.kind == null {
			continue
		}
		switch own := n.entry(e.key); {
		case own == nil:
			n.entries = append(n.entries, e)
		case own.value.kind == mapping && e.value.kind == mapping:
			merged := *own.value // an alias may have it elsewhere
			merged.entries = slices.Clone(own.value.entries)
			merged.merge(e.value)
			own.value = &merged
		default:
			*own = e
		}
	}
}

// get returns the value of a key, nil when it is absent or has none.
func (n *node) get(key string) *node {
	if e := n.entry(key); e != nil && e.value.kind != null {
		return e.value
	}
	return nil
}

func (n *node) entry(key string) *entry {
	if n == nil {
		return nil
	}
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// find follows a dotted path ("env.PATH", "devices.0", "devices[0]") as far as it exists;
// keys may contain dots. It returns the value there, and the path in the format of Problem,
// with a leading dot.
func (n *node) find(path string) (*node, string) {
	path = strings.TrimPrefix(path, ".")
	if path == "" {
		return n, ""
	}
	for i := range n.entries {
		e := &n.entries[i]
		rest, ok := strings.CutPrefix(path, e.key)
		if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			found, below := e.value.find(rest)
			return found, "." + e.key + below
		}
	}
	if n.kind == list {
		index, rest, _ := strings.Cut(strings.TrimPrefix(path, "["), ".")
		index, more, _ := strings.Cut(index, "]")
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.items) {
			if rest = more + "." + rest; rest == "." {
				rest = ""
			}
			found, below := n.items[i].find(rest)
			return found, fmt.Sprintf("[%d]%s", i, below)
		}
	}
	if path[0] == '[' {
		return n, path
	}
	return n, "." + path
}

// composer makes the tree of a file and collects problems.
type composer struct {
	file     string
	lookup   func(string) (string, bool)
	anchors  map[string]*node
	problems Problems
	nodes    int  // number of nodes added by aliases
	bomb     bool // aliases added too many nodes
}

// compose parses YAML. The tree is nil when the text is not one YAML mapping. file is stored
// in the nodes; it is empty for the main file.
func compose(file string, source []byte, lookup func(string) (string, bool)) (*node, Problems) {
	root, problems := composeText(file, source, lookup)
	for _, p := range problems {
		p.File = file
	}
	return root, problems
}

func composeText(file string, source []byte, lookup func(string) (string, bool)) (*node, Problems) {
	// Editors on Windows write a byte order mark first.
	source = bytes.TrimPrefix(source, []byte("\ufeff"))
	start := &node{line: 1, column: 1}
	if len(source) > maxFile {
		return nil, Problems{at(start, "", "the file is larger than %s; expected a configuration", size.Bytes(maxFile))}
	}
	if line, column, ok := firstInvalid(source); !ok {
		return nil, Problems{at(&node{line: line, column: column}, "", "expected text in UTF-8 without control characters")}
	}
	tokens := lexer.Tokenize(string(source))
	if deep := tooDeep(tokens); deep != nil {
		return nil, Problems{at(deep, "", "nested deeper than %d levels", maxDepth)}
	}
	parsed, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p := syntaxProblem(err)
		if lines := strings.Split(string(source), "\n"); p.Line <= len(lines) {
			if indent := lines[p.Line-1]; strings.Contains(indent[:len(indent)-len(strings.TrimLeft(indent, " \t"))], "\t") {
				p.Text = "not valid YAML: the line is indented with a tab; indent with spaces"
			}
		}
		return nil, Problems{p}
	}
	c := &composer{file: file, lookup: lookup, anchors: map[string]*node{}}
	root := &node{kind: mapping, line: 1, column: 1}
	documents := 0
	// Where the whole is not a mapping, its keys are not checked.
	for _, doc := range parsed.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.DirectiveType {
			continue
		}
		if documents++; documents > 1 {
			return nil, Problems{at(position(doc.Body), "", "a second YAML document; expected one")}
		}
		body := c.node(doc.Body, "", 0)
		if body.kind != mapping && body.kind != null && body.kind != broken {
			return nil, Problems{at(body, "", "expected keys with values (data_root, sheep, …), found %s", body.kind)}
		}
		root.entries = body.entries
	}
	return root, c.problems
}

// firstInvalid returns the position of the first byte that is not valid text.
func firstInvalid(source []byte) (line, column int, ok bool) {
	line, column = 1, 0
	for i := 0; i < len(source); {
		r, size := utf8.DecodeRune(source[i:])
		column++
		if r == utf8.RuneError && size == 1 || r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f {
			return line, column, false
		}
		if r == '\n' {
			line, column = line+1, 0
		}
		i += size
	}
	return 0, 0, true
}

// tooDeep returns the position where brackets, or nested values on one line, go deeper
// than maxDepth. The parser takes quadratic time for such text.
func tooDeep(tokens token.Tokens) *node {
	brackets, line, onLine := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, onLine = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets = max(0, brackets-1)
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			onLine++
		}
		if max(brackets, onLine) > maxDepth {
			return &node{line: line, column: max(1, t.Position.Column)}
		}
	}
	return nil
}

var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// syntaxProblem makes a Problem of a parser's error, without the text that it quotes from
// the file: that may be a secret.
func syntaxProblem(err error) *Problem {
	where, message := &node{line: 1, column: 1}, "cannot be read"
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) {
		message = quoted.ReplaceAllString(syntax.Message, "…")
		if syntax.Token != nil && syntax.Token.Position != nil {
			where.line, where.column = syntax.Token.Position.Line, max(1, syntax.Token.Position.Column)
		}
	}
	return at(where, "", "not valid YAML: %s", message)
}

func (c *composer) wrong(n *node, path, format string, args ...any) {
	c.problems = append(c.problems, at(n, path, format, args...))
}

func position(n ast.Node) *node {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return position(m.Values[0].Key)
	}
	if v, ok := n.(*ast.MappingValueNode); ok {
		return position(v.Key)
	}
	out := &node{line: 1, column: 1, size: 1}
	if t := n.GetToken(); t != nil && t.Position != nil {
		out.line, out.column = t.Position.Line, max(1, t.Position.Column)
	}
	return out
}

func (c *composer) node(n ast.Node, path string, depth int) *node {
	if n == nil {
		return &node{file: c.file, line: 1, column: 1}
	}
	out := position(n)
	out.file = c.file
	if depth > maxDepth {
		c.wrong(out, path, "nested deeper than %d levels", maxDepth)
		out.kind = broken
		return out
	}
	switch n := n.(type) {
	case *ast.NullNode:
		out.kind = null
	case *ast.StringNode:
		out.kind, out.text = text, n.Value
		// As in the Python original, quoted text is not expanded.
		if n.Token.Type != token.SingleQuoteType && n.Token.Type != token.DoubleQuoteType {
			c.expand(out, path)
		}
	case *ast.LiteralNode:
		out.kind, out.text = text, n.Value.Value
	case *ast.IntegerNode:
		out.kind, out.text = number, n.Token.Value
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = decimal, n.GetToken().Value
	case *ast.BoolNode:
		out.kind, out.text = boolean, n.Token.Value
	case *ast.TagNode:
		return c.tagged(n, out, path, depth)
	case *ast.AnchorNode:
		value := c.node(n.Value, path, depth+1)
		c.anchors[n.Name.GetToken().Value] = value
		return value
	case *ast.AliasNode:
		return c.alias(n, out, path)
	case *ast.SequenceNode:
		out.kind = list
		for i, item := range n.Values {
			value := c.node(item, fmt.Sprintf("%s[%d]", path, i), depth+1)
			out.items = append(out.items, value)
			out.size += value.size
		}
	case *ast.MappingNode:
		out.kind = mapping
		c.mapping(n.Values, out, path, depth)
	case *ast.MappingValueNode:
		out.kind = mapping
		c.mapping([]*ast.MappingValueNode{n}, out, path, depth)
	default:
		c.wrong(out, path, "not understood; expected a value")
		out.kind = broken
	}
	return out
}

func (c *composer) expand(n *node, path string) {
	expanded, referred, wrong := expand(n.text, c.lookup)
	if !referred {
		return
	}
	n.text, n.written, n.referred = expanded, n.text, true
	for _, w := range wrong {
		c.wrong(n, path, "%s", w)
		n.kind = broken
	}
}

func (c *composer) tagged(n *ast.TagNode, out *node, path string, depth int) *node {
	value := c.node(n.Value, path, depth+1)
	switch {
	case n.Start.Value != "!!str":
		c.wrong(out, path, "YAML tags other than !!str are not understood; leave it out")
		out.kind = broken
		return out
	case value.kind == number || value.kind == decimal || value.kind == boolean:
		value.kind = text
	}
	return value
}

// alias returns the anchor's value. All uses of an anchor together may not
// make the tree larger than maxNodes.
func (c *composer) alias(n *ast.AliasNode, out *node, path string) *node {
	value, ok := c.anchors[n.Value.GetToken().Value]
	if !ok {
		c.wrong(out, path, "no anchor of this name stands before it")
		out.kind = broken
		return out
	}
	if c.nodes += value.size; c.nodes > maxNodes {
		if !c.bomb {
			c.wrong(out, path, "the aliases of this file expand to more than %d values", maxNodes)
		}
		c.bomb = true // reported once
		out.kind = broken
		return out
	}
	return value
}

func (c *composer) mapping(values []*ast.MappingValueNode, out *node, path string, depth int) {
	seen := map[string]*entry{}
	var merged []*node
	for _, v := range values {
		key := ast.Node(v.Key)
		if k, ok := key.(*ast.MappingKeyNode); ok {
			key = k.Value
		}
		if key.Type() == ast.MergeKeyType {
			merged = append(merged, c.sources(v.Value, below(path, "<<"), depth)...)
			continue
		}
		where := position(key)
		where.file = c.file
		switch key.(type) {
		case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		default:
			c.wrong(where, path, "expected a plain word as key")
			continue
		}
		e := entry{key: key.GetToken().Value, file: c.file, line: where.line, column: where.column}
		if first, ok := seen[e.key]; ok {
			c.wrong(where, below(path, e.key), "duplicate key; it already stands in line %d, keep one of them", first.line)
			continue
		}
		e.value = c.node(v.Value, below(path, e.key), depth+1)
		if e.value.kind == null { // it may stand nowhere
			e.value = &node{file: c.file, line: e.line, column: e.column, size: 1}
		}
		seen[e.key] = &e
		out.entries = append(out.entries, e)
		out.size += 1 + e.value.size
	}
	for _, source := range merged {
		for _, e := range source.entries {
			if _, ok := seen[e.key]; !ok {
				seen[e.key] = &e
				out.entries = append(out.entries, e)
				out.size += 1 + e.value.size
			}
		}
	}
}

// sources returns the mappings that a merge key names.
func (c *composer) sources(n ast.Node, path string, depth int) []*node {
	value := c.node(n, path, depth+1)
	sources := []*node{value}
	if value.kind == list {
		sources = value.items
	}
	return slices.DeleteFunc(slices.Clone(sources), func(s *node) bool {
		if s.kind != mapping && s.kind != broken {
			c.wrong(s, path, "expected a mapping to merge, found %s", s.kind)
		}
		return s.kind != mapping
	})
}

func below(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
