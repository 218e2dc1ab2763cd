package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// generateCommand generates from the commands what packages contain beside the programs: completions for shells, and manual pages as Markdown.
func generateCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "generate DIR",
		Short:  "Write shell completions and the manual pages' sources",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, name := range []string{"shepherdd", "shepherd"} { // the program and its link
				if err := generateCompletions(filepath.Join(args[0], "completions"), name); err != nil {
					return fmt.Errorf("write the completions of %s: %w", name, err)
				}
			}
			if err := generateMan(filepath.Join(args[0], "man"), newRoot("shepherdd", Build{})); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	}
}

// generateCompletions writes each shell's completions under the name that the
// shell looks for.
func generateCompletions(dir, name string) error {
	root := newRoot(name, Build{})
	for file, write := range map[string]func(io.Writer) error{
		filepath.Join("bash", name):         func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		filepath.Join("zsh", "_"+name):      root.GenZshCompletion,
		filepath.Join("fish", name+".fish"): func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	} {
		if err := writeWith(filepath.Join(dir, file), write); err != nil {
			return err
		}
	}
	return nil
}

// generateMan writes a page for the command and each below it.
func generateMan(dir string, c *cobra.Command) error {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return nil
	}
	file := filepath.Join(dir, pageName(c)+".8.md")
	if err := writeWith(file, func(w io.Writer) error { return manPage(w, c) }); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if err := generateMan(dir, sub); err != nil {
			return err
		}
	}
	return nil
}

func writeWith(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is a command's page as go-md2man reads it.
func manPage(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# NAME\n%s - %s\n\n# SYNOPSIS\n", pageName(c), lowerFirst(c.Short))
	if c.Runnable() {
		fmt.Fprintf(&b, "**%s**%s\n\n", c.CommandPath(), escapeMarkdown(strings.TrimPrefix(c.UseLine(), c.CommandPath())))
	}
	for _, sub := range subcommands(c) {
		fmt.Fprintf(&b, "**%s**%s\n\n", sub.CommandPath(), escapeMarkdown(strings.TrimPrefix(sub.UseLine(), sub.CommandPath())))
	}
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(&b, "# DESCRIPTION\n%s\n\n", escapeMarkdown(long))
	if c.Example != "" {
		fmt.Fprintf(&b, "# EXAMPLES\n```\n%s\n```\n\n", c.Example)
	}
	if subs := subcommands(c); len(subs) > 0 {
		b.WriteString("# COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, "**%s**\n:   %s. See **%s**(8).\n\n", sub.Name(), escapeMarkdown(sub.Short), pageName(sub))
		}
	}
	b.WriteString("# OPTIONS\n")
	c.Flags().AddFlagSet(c.PersistentFlags())
	c.Flags().AddFlagSet(c.InheritedFlags())
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			b.WriteString(manFlag(f))
		}
	})
	if !c.HasParent() {
		b.WriteString(manOfDaemon)
	}
	b.WriteString("# SEE ALSO\n" + strings.Join(seeAlso(c), ", ") + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func subcommands(c *cobra.Command) []*cobra.Command {
	var shown []*cobra.Command
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			shown = append(shown, sub)
		}
	}
	return shown
}

func manFlag(f *pflag.Flag) string {
	name := "**--" + f.Name + "**"
	if f.Shorthand != "" {
		name = "**-" + f.Shorthand + "**, " + name
	}
	kind, usage := pflag.UnquoteUsage(f)
	if kind != "" {
		name += " *" + kind + "*"
	}
	switch f.DefValue {
	case "", "false", "[]", "0s":
	default:
		usage += " (default " + f.DefValue + ")"
	}
	return fmt.Sprintf("%s\n:   %s\n\n", name, escapeMarkdown(usage))
}

func seeAlso(c *cobra.Command) []string {
	var pages []string
	if c.HasParent() {
		pages = append(pages, "**"+pageName(c.Parent())+"**(8)")
	}
	for _, sub := range subcommands(c) {
		pages = append(pages, "**"+pageName(sub)+"**(8)")
	}
	return append(pages, "**shepherd.yml**(5)")
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// escapeMarkdown keeps help text from being read as markup.
func escapeMarkdown(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "<", `\<`, "[", `\[`, "`", "\\`").Replace(s)
}

// manOfDaemon is the text of the daemon's manual page that its help does not have.
const manOfDaemon = `# SIGNALS
**TERM**, **INT**, **HUP**
:   Stop. Running jobs may finish for **drain\_timeout**; the others go back to the queue, unspent. A second signal cuts that short. Where the service manager runs the daemon, HUP has it read its configuration again.

# EXIT STATUS
**0**
:   All went well.

**1**
:   It failed; standard error says why and what to do.

**2**
:   The command line could not be understood.

**3**, **4**
:   The job has failed, or was cancelled.

**5**
:   There is no such job, file or model.

**6**
:   No daemon answers, or it cannot answer at the moment.

**7**
:   The daemon does not know the caller, or does not allow it.

**8**
:   Not as the job is now: it has ended already, or has not yet.

**9**
:   A **wait --timeout** passed first.

**130**
:   Interrupted; a job that was waited for goes on.

**78**
:   The daemon's configuration is wrong; to start it again is of no use before that is corrected.

# ENVIRONMENT
**STATE\_DIRECTORY**
:   What has to survive a restart is kept there, unless the configuration names a **state\_dir**.

**SHEPHERD\_SERVER**, **SHEPHERD\_TOKEN**, **SHEPHERD\_CA\_FILE**, **SHEPHERD\_CONTEXT**
:   The address of the daemon that commands ask, the token to show there, the authorities to trust, and the name under which **login** keeps all of that.

**DEBUG**
:   Set to 1, clients are shown tracebacks and server paths.

Any variable may be referred to in the configuration file, as *$NAME*.

# FILES
*/etc/shepherd/shepherd.yml*
:   The configuration of the packaged service, **shepherdd.service**.

*/var/lib/shepherd*
:   The packaged service's ledger, embedded storage and models.

*/usr/share/doc/shepherd*
:   The documentation: operations.md, configuration.md, api.md and more.

`
