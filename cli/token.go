package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/access"
)

func tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Create API tokens"}
	var name, tenant string
	var scopes []string
	n := &cobra.Command{
		Use:   "new",
		Short: "Create a token",
		Long: "Makes a token and prints it, this once, on standard output; on standard error\n" +
			"follows what to put into the configuration, which holds the token's hash alone.\n" +
			"Nothing is kept: a token that is lost is replaced by another.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range scopes {
				if _, err := access.ParseScope(s); err != nil {
					return &usageError{err}
				}
			}
			token := access.NewToken()
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), token); err != nil {
				return err
			}
			text := fmt.Sprintf("Give this to the client, which sends the header  Authorization: Bearer TOKEN\n"+
				"In the configuration, below api.tokens:\n\n    - name: %s\n      hash: %s\n      scopes: [%s]\n",
				name, access.DigestOf(token), strings.Join(scopes, ", "))
			if tenant != "" {
				text += "      tenant: " + tenant + "\n"
			}
			_, err := fmt.Fprint(cmd.ErrOrStderr(), text)
			return err
		},
	}
	n.Flags().StringVar(&name, "name", "NAME", "what logs call who shows it")
	n.Flags().StringSliceVar(&scopes, "scope", []string{"submit", "read"}, "what it allows: submit, read, admin")
	n.Flags().StringVar(&tenant, "tenant", "", "whose jobs alone it sees; all jobs, if left out")
	c.AddCommand(n)
	return c
}
