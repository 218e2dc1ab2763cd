package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/iterait/shepherd/client"
)

// place is a daemon, and how it is asked.
type place struct {
	Server string `json:"server"`
	Token  string `json:"token,omitempty"`
	CAFile string `json:"ca_file,omitempty"`
}

// contexts are the daemons that `login` keeps, in a file of the user's that holds
// tokens.
type contexts struct {
	Current string           `json:"current,omitempty"`
	Known   map[string]place `json:"contexts"`
}

// contextsFile is $XDG_CONFIG_HOME/shepherd/contexts.json, or where the system has
// such files.
func contextsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "shepherd", "contexts.json"), nil
}

// readContexts reads the file; no file is no context.
func readContexts() (contexts, error) {
	kept := contexts{Known: map[string]place{}}
	path, err := contextsFile()
	if err != nil {
		return kept, nil // a user without a home, such as a service, keeps none
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return kept, fmt.Errorf("read the daemons that `login` keeps, in %s: %w", path, err)
	}
	if kept.Known == nil {
		kept.Known = map[string]place{}
	}
	return kept, nil
}

// write replaces the file, which its owner alone may read.
func (c contexts) write() error {
	path, err := contextsFile()
	if err != nil {
		return fmt.Errorf("save the daemon: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save the daemon: %w", err)
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "contexts-") // 0600
	if err != nil {
		return fmt.Errorf("save the daemon: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("save the daemon: %w", err)
	}
	return nil
}

func (c contexts) named(name string) (place, error) {
	at, ok := c.Known[name]
	if !ok {
		known := strings.Join(slices.Sorted(maps.Keys(c.Known)), ", ")
		if known == "" {
			known = "there are none"
		}
		return place{}, usage("there is no context %q (%s); `login` creates one", name, known)
	}
	return at, nil
}

func contextNamed(name string) (place, error) {
	kept, err := readContexts()
	if err != nil {
		return place{}, err
	}
	return kept.named(name)
}

func loginCommand(c Config) *cobra.Command {
	var name, ca, token string
	var without bool
	cmd := &cobra.Command{
		Use:   "login URL",
		Short: "Save a daemon's address and a token for later commands",
		Long: "Asks for a token, tries it, and saves it with the address in a file that only you can\n" +
			"read. Commands then ask this daemon, unless a flag or the environment names another.\n" +
			"If standard input is not a terminal, its first line is the token.",
		Example: "  shepherd login https://farm.example.org\n  shepherd login http://10.0.0.7:5000 --name lab --no-token",
		Args:    exactly(1, "the address of a daemon is needed, such as https://farm.example.org"),
		RunE: func(cmd *cobra.Command, args []string) error {
			at := place{Server: strings.TrimRight(args[0], "/"), Token: token, CAFile: ca}
			if ca != "" {
				var err error
				if at.CAFile, err = filepath.Abs(ca); err != nil {
					return err
				}
			}
			if _, err := at.open(c); err != nil {
				return err
			}
			if !without && token == "" {
				var err error
				if at.Token, err = askToken(cmd, at.Server); err != nil {
					return err
				}
			}
			said, err := at.try(cmd.Context(), c)
			if err != nil {
				return Hint(err)
			}
			kept, err := readContexts()
			if err != nil {
				return err
			}
			kept.Known[name], kept.Current = at, name
			if err := kept.write(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s Commands ask %s now (context %s).\n", said, at.Server, name)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "default", "name of the context")
	cmd.Flags().StringVar(&ca, "ca-file", "", "certificates of authorities to trust in addition to the system's")
	cmd.Flags().StringVar(&token, "token", "", "the token; other users can see it while the command runs")
	cmd.Flags().BoolVar(&without, "no-token", false, "the daemon requires no token")
	return cmd
}

// askToken reads a token from a terminal, which does not show it, or the first line
// of another input.
func askToken(cmd *cobra.Command, server string) (string, error) {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(cmd.ErrOrStderr(), "Token for %s: ", server)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return strings.TrimSpace(string(text)), err
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the token: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", usage("standard input has no token; give --no-token if the daemon requires none")
	}
	return line, nil
}

// try asks the daemon who the caller is, and returns that in words.
func (p place) try(ctx context.Context, c Config) (string, error) {
	daemon, err := p.open(c)
	if err != nil {
		return "", err
	}
	defer daemon.CloseIdle()
	answer, err := daemon.GetVersionWithResponse(ctx)
	if client.Is(err, 403) { // known, but may not read
		return "The token is valid, but lacks the scope read.", nil
	}
	if err != nil {
		return "", err
	}
	if answer.JSON200 == nil {
		return "", fmt.Errorf("%s is not a shepherd daemon", p.Server)
	}
	return fmt.Sprintf("It is shepherd %s.", answer.JSON200.Version), nil
}

func logoutCommand(Config) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "Remove a saved address and token",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kept, err := readContexts()
			if err != nil {
				return err
			}
			if name == "" {
				name = kept.Current
			}
			if name == "" {
				return usage("no context is in use; name one with --name")
			}
			if _, err := kept.named(name); err != nil {
				return err
			}
			delete(kept.Known, name)
			if kept.Current == name {
				kept.Current = ""
			}
			if err := kept.write(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The context %s is forgotten. Its token is still valid: take it out of api.tokens to end that.\n", name)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the context (default: the current one)")
	return cmd
}

// shownContext is a daemon that login keeps, as programs see it: without its token.
type shownContext struct {
	Name   string `json:"name"`
	Server string `json:"server"`
	Used   bool   `json:"used"`
	Token  bool   `json:"token"` // there is one
}

func contextsCommand(Config) *cobra.Command {
	var form Format
	cmd := &cobra.Command{
		Use:   "contexts",
		Short: "List the daemons that `login` has saved, and choose one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kept, err := readContexts()
			if err != nil {
				return err
			}
			lines := &Listing[shownContext]{
				To: cmd.OutOrStdout(), Form: form, Heading: []string{"USED", "NAME", "SERVER", "TOKEN"},
				Name: func(c shownContext) string { return c.Name },
				Row: func(c shownContext) []string {
					used, token := "", "no"
					if c.Used {
						used = "*"
					}
					if c.Token {
						token = "yes"
					}
					return []string{used, c.Name, c.Server, token}
				},
			}
			var all []shownContext
			for _, name := range slices.Sorted(maps.Keys(kept.Known)) {
				one := kept.Known[name]
				all = append(all, shownContext{Name: name, Server: one.Server, Used: name == kept.Current, Token: one.Token != ""})
			}
			return lines.Print(all)
		},
	}
	form.Add(cmd.Flags())
	cmd.AddCommand(&cobra.Command{
		Use:   "use [NAME]",
		Short: "Choose the daemon that commands use; without a name, the one of this machine",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kept, err := readContexts()
			if err != nil {
				return err
			}
			kept.Current = ""
			if len(args) > 0 {
				if _, err := kept.named(args[0]); err != nil {
					return err
				}
				kept.Current = args[0]
			}
			return kept.write()
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			kept, err := readContexts()
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return slices.Sorted(maps.Keys(kept.Known)), cobra.ShellCompDirectiveNoFileComp
		},
	})
	return cmd
}

// exactly checks the number of arguments.
func exactly(n int, text string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s", text)
		}
		return nil
	}
}
