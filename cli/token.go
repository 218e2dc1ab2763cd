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
		Long: "Creates a token and prints it, only this once, on standard output. The lines to add to\n" +
			"the configuration, which contain only the token's hash, are printed on standard error.\n" +
			"The token is not stored: to replace a lost one, create another.",
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
	n.Flags().StringVar(&name, "name", "NAME", "name of the token's holder in logs and metrics")
	n.Flags().StringSliceVar(&scopes, "scope", []string{"submit", "read"}, "what the token allows: submit, read, admin")
	n.Flags().StringVar(&tenant, "tenant", "", "tenant whose jobs it is limited to (default: all jobs)")
	c.AddCommand(n)
	return c
}
