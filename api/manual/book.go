package manual

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
)

// repository is where files are looked at that lie outside docs.
const repository = "https://github.com/iterait/shepherd/blob/main"

// A book is the manual as it is served.
type book struct {
	pages  map[string][]byte // HTML, by the name of the Markdown file
	index  []byte            // what the search looks in: a list of sections, as JSON
	broken []string          // links within the manual that lead nowhere
}

// section is what the search finds: the text from one heading to the next.
type section struct {
	Address string `json:"address"`
	Page    string `json:"page"`
	Title   string `json:"title"`
	Text    string `json:"text"`
	level   int
}

// page is a file that has been read.
type page struct {
	name     string
	source   []byte
	tree     ast.Node
	sections []section // the first has the title of the page
}

// entry and group are the table of contents, which README.md is.
type (
	entry struct{ Address, Title string }
	group struct {
		Title   string
		Entries []entry
	}
)

// bind reads all Markdown below docs and makes pages of it.
func bind(docs fs.FS) *book {
	markdown := goldmark.New(
		goldmark.WithExtensions(extension.NewTable(extension.WithTableCellAlignMethod(extension.TableCellAlignAttribute))), // no inline style
		goldmark.WithParserOptions(parser.WithAutoHeadingID()),
	)
	layout := template.Must(template.ParseFS(files, "layout.html"))
	b := &book{pages: make(map[string][]byte)}
	known := make(map[string]*page)
	var all []*page
	for _, name := range names(docs) {
		if path.Ext(name) == ".md" {
			p := parse(markdown, name, read(docs, name))
			known[name], all = p, append(all, p)
		}
	}
	var index []section
	contents := b.contents(known)
	for _, p := range all {
		b.link(p, known, docs)
		index = append(index, p.sections...)
		b.pages[p.name] = render(markdown, layout, p, contents)
	}
	b.index, _ = json.Marshal(index) // of strings alone
	return b
}

func parse(markdown goldmark.Markdown, name string, source []byte) *page {
	p := &page{name: name, source: source}
	ids := parser.NewContext(parser.WithIDs(&anchors{taken: make(map[string]int)}))
	p.tree = markdown.Parser().Parse(text.NewReader(p.source), parser.WithContext(ids))
	for node := p.tree.FirstChild(); node != nil; node = node.NextSibling() {
		if heading, ok := node.(*ast.Heading); ok {
			s := section{Address: address(name), Title: plain(node, p.source), level: heading.Level}
			if id, ok := node.AttributeString("id"); ok && len(p.sections) > 0 {
				s.Address += "#" + string(id.([]byte))
			}
			p.sections = append(p.sections, s)
		} else if last := len(p.sections) - 1; last >= 0 {
			p.sections[last].Text = strings.TrimSpace(p.sections[last].Text + " " + plain(node, p.source))
		}
	}
	for i := range p.sections {
		p.sections[i].Page = p.sections[0].Title
	}
	return p
}

// plain is the text of a node without its markup.
func plain(node ast.Node, source []byte) string {
	var words strings.Builder
	_ = ast.Walk(node, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		switch n := n.(type) {
		case *ast.Text:
			if entering {
				words.Write(n.Segment.Value(source))
				if n.SoftLineBreak() || n.HardLineBreak() {
					words.WriteByte(' ')
				}
			}
		case *ast.AutoLink:
			if entering {
				words.Write(n.Label(source))
			}
		case *ast.FencedCodeBlock, *ast.CodeBlock:
			if entering {
				words.Write(n.Lines().Value(source))
			}
		default:
			if !entering && n.Type() == ast.TypeBlock {
				words.WriteByte(' ')
			}
		}
		return ast.WalkContinue, nil
	})
	return strings.Join(strings.Fields(words.String()), " ")
}

// contents is the list of pages as README.md has it: a heading for each group, a link in
// each item.
func (b *book) contents(known map[string]*page) []group {
	first := known["README.md"]
	if first == nil {
		b.broken = append(b.broken, "README.md: there is no table of contents")
		return nil
	}
	var groups []group
	listed := map[string]bool{"README.md": true}
	for node := first.tree.FirstChild(); node != nil; node = node.NextSibling() {
		if heading, ok := node.(*ast.Heading); ok && heading.Level == 2 {
			groups = append(groups, group{Title: plain(heading, first.source)})
		}
		list, ok := node.(*ast.List)
		if !ok || len(groups) == 0 {
			continue
		}
		for item := list.FirstChild(); item != nil; item = item.NextSibling() {
			link, ok := item.FirstChild().FirstChild().(*ast.Link)
			if !ok {
				continue
			}
			of := &groups[len(groups)-1]
			name := string(link.Destination)
			listed[name] = true
			if known[name] != nil {
				name = address(name)
			}
			of.Entries = append(of.Entries, entry{name, plain(link, first.source)})
		}
	}
	for name := range known {
		// Decisions are listed by a page of their own.
		if !listed[name] && path.Dir(name) != "decisions" {
			b.broken = append(b.broken, name+": README.md does not list it")
		}
	}
	slices.Sort(b.broken)
	return groups
}

// link makes the links of a page those of the manual.
func (b *book) link(p *page, known map[string]*page, docs fs.FS) {
	_ = ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Link:
			n.Destination = []byte(b.resolve(p, string(n.Destination), known, docs))
		case *ast.Image:
			n.Destination = []byte(b.resolve(p, string(n.Destination), known, docs))
		}
		return ast.WalkContinue, nil
	})
}

// resolve is the address that a link of p leads to.
func (b *book) resolve(p *page, to string, known map[string]*page, docs fs.FS) string {
	if strings.Contains(to, ":") || strings.HasPrefix(to, "/") {
		return to
	}
	file, anchor, _ := strings.Cut(to, "#")
	name := p.name
	if file != "" {
		name = path.Join(path.Dir(p.name), file)
	}
	if outside, ok := strings.CutPrefix(name, "../"); ok {
		return repository + "/" + outside
	}
	if known[name] == nil && known[path.Join(name, "README.md")] != nil {
		name = path.Join(name, "README.md")
	}
	target := known[name]
	if target == nil {
		if _, err := fs.Stat(docs, name); err != nil {
			b.broken = append(b.broken, fmt.Sprintf("%s: %s: there is no such file", p.name, to))
		}
		return root + "/" + name
	}
	if anchor == "" {
		return address(name)
	}
	at := address(name) + "#" + anchor
	if !slices.ContainsFunc(target.sections, func(s section) bool { return s.Address == at }) {
		b.broken = append(b.broken, fmt.Sprintf("%s: %s: there is no such heading", p.name, to))
	}
	return at
}

func render(markdown goldmark.Markdown, layout *template.Template, p *page, contents []group) []byte {
	var article, whole bytes.Buffer
	_ = markdown.Renderer().Render(&article, p.source, p.tree) // to memory
	// What is wider than the page is scrolled, also by keyboard.
	body := strings.NewReplacer(
		"<table>", `<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>`, "</table>", "</table></div>",
		"<th></th>", "<td></td>", // a heading says something
		"<pre>", `<pre tabindex="0">`,
	).Replace(article.String())
	title := p.name
	var here []section
	if len(p.sections) > 0 {
		title = p.sections[0].Title
		for _, s := range p.sections[1:] {
			if s.level == 2 {
				here = append(here, s)
			}
		}
	}
	err := layout.Execute(&whole, map[string]any{
		"Title": title, "Address": address(p.name), "Contents": contents, "Here": here,
		"Body": template.HTML(body), // of our own Markdown, whose HTML is left out
	})
	if err != nil {
		panic(err) // of a template that is part of the program
	}
	return whole.Bytes()
}

// anchors names headings as the repository's web site does, so that a link works in both.
type anchors struct{ taken map[string]int }

// Generate returns the name of a heading with the text value.
func (a *anchors) Generate(value []byte, _ ast.NodeKind) []byte {
	name := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(string(value)))
	n := a.taken[name]
	a.taken[name] = n + 1
	if n > 0 {
		name = fmt.Sprintf("%s-%d", name, n)
	}
	return []byte(name)
}

// Put is called for names that are given in the source, which ours are not.
func (a *anchors) Put(value []byte) { a.taken[string(value)]++ }
