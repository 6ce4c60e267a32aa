package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) tokenCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "token",
		Short:   "Create, list and revoke API tokens",
		Example: "  demiurge token create --role reader --name dashboard\n  demiurge token list",
	}, a.tokenCreate(), a.tokenList(), a.tokenRevoke())
}

func (a *app) tokenCreate() *cobra.Command {
	var body api.CreateToken
	var ttl time.Duration
	c := &cobra.Command{
		Use:     "create --role ROLE",
		Short:   "Create a token; its secret is shown this once",
		Example: "  demiurge token create --role reader --name dashboard --ttl 720h",
		Args:    cobra.NoArgs,
	}
	flags := c.Flags()
	flags.StringVar(&body.Role, "role", "", "admin, operator, platform or reader")
	flags.StringVar(&body.Name, "name", "", "what the token is for")
	flags.DurationVar(&ttl, "ttl", 0, "expires after this time (default never)")
	_ = c.MarkFlagRequired("role")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(
		[]string{api.RoleAdmin, api.RoleOperator, api.RolePlatform, api.RoleReader}, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
		body.TTL = optionalDuration(ttl)
		x, err := coord.CreateToken(ctx, body)
		if err != nil {
			return err
		}
		return a.print(x, func(w io.Writer) error {
			if err := fields(w, "Token", x.TokenID, "Role", x.Role, "Name", x.Name, "Expires", stamp(x.ExpiresAt), "Secret", x.Secret); err != nil {
				return err
			}
			fmt.Fprintln(a.Stderr, "The secret is not shown again.")
			return nil
		})
	})
	return c
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens, without their secrets",
		Example: "  demiurge token list",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			items, err := coord.ListTokens(ctx)
			if err != nil {
				return err
			}
			return a.print(listBody(items), func(w io.Writer) error {
				g := newGrid("TOKEN", "ROLE", "NAME", "CREATED", "EXPIRES")
				for _, x := range items {
					g.add(x.TokenID, x.Role, x.Name, stamp(&x.CreatedAt), stamp(x.ExpiresAt))
				}
				return g.draw(w)
			})
		}),
	}
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Revoke a token at once",
		Example: "  demiurge token revoke tk-abcdefghij",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			token, err := id.ParseToken(args[0])
			if err != nil {
				return program.Usage("%s", err)
			}
			if err := coord.DeleteToken(ctx, string(token)); err != nil {
				return err
			}
			return a.done("token_id", string(token), "revoked token "+string(token))
		}),
	}
}
