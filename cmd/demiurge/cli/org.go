package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func (a *app) orgCommand() *cobra.Command {
	return program.Group(&cobra.Command{
		Use:     "org",
		Short:   "Tell Demiurge of organizations, their members and projects",
		Example: "  demiurge org put 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 --name Acme --member alice=owner\n  demiurge org list",
	}, a.orgPut(), a.orgShow(), a.orgList(), a.orgDelete(), a.memberCommand(), a.projectCommand())
}

func (a *app) orgPut() *cobra.Command {
	var name string
	var members, projects []string
	c := &cobra.Command{
		Use:   "put ORG --name NAME [--member USER=ROLE]… [--project ID=NAME]…",
		Short: "Create or replace an organization",
		Long: `Create an organization, or replace everything that is known of it: members and projects that are not
named are gone afterwards. 'demiurge org member' and 'demiurge org project' change one.`,
		Example: `  demiurge org put 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 --name Acme \
    --member alice=owner --member bob=member --project board="Planning board"`,
	}
	flags := c.Flags()
	flags.StringVar(&name, "name", "", "name of the organization")
	flags.StringArrayVar(&members, "member", nil, "user=role with role owner, admin or member; repeatable")
	flags.StringArrayVar(&projects, "project", nil, "id=name; repeatable")
	_ = c.MarkFlagRequired("name")
	c.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		org, err := organization(args[0])
		if err != nil {
			return err
		}
		body := api.PutOrganization{Name: name}
		if body.Members, err = parseMembers(members); err != nil {
			return err
		}
		if body.Projects, err = parseProjects(projects); err != nil {
			return err
		}
		x, err := coord.PutOrganization(ctx, string(org), body)
		if err != nil {
			return err
		}
		return a.printOrganization(x)
	})
	return c
}

func parseMembers(args []string) ([]api.Member, error) {
	var out []api.Member
	for _, arg := range args {
		user, role, ok := strings.Cut(arg, "=")
		if _, err := id.ParseUser(user); err != nil {
			return nil, program.Usage("--member: %s", err)
		}
		if !ok || !validRole(role) {
			return nil, program.Usage("cannot use %q as --member: want user=role with role owner, admin or member", arg)
		}
		out = append(out, api.Member{UserID: user, Role: role})
	}
	return out, nil
}

func validRole(role string) bool { return role == "owner" || role == "admin" || role == "member" }

func parseProjects(args []string) ([]api.Project, error) {
	var out []api.Project
	for _, arg := range args {
		project, name, _ := strings.Cut(arg, "=")
		if _, err := id.ParseProject(project); err != nil {
			return nil, program.Usage("--project: %s", err)
		}
		out = append(out, api.Project{ProjectID: project, Name: name})
	}
	return out, nil
}

func (a *app) orgShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ORG",
		Short:   "Show one organization",
		Example: "  demiurge org show 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			org, err := organization(args[0])
			if err != nil {
				return err
			}
			x, err := coord.Organization(ctx, string(org))
			if err != nil {
				return err
			}
			return a.printOrganization(x)
		}),
	}
}

func (a *app) orgList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List organizations",
		Example: "  demiurge org list\n  demiurge org list -o json",
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, coord *client.Client, _ []string) error {
			items, err := coord.ListOrganizations(ctx)
			if err != nil {
				return err
			}
			return a.print(listBody(items), func(w io.Writer) error {
				g := newGrid("ORGANIZATION", "NAME", "MEMBERS", "PROJECTS", "ALLOCATION", "UPDATED")
				for _, x := range items {
					g.add(x.OrganizationID, x.Name, len(x.Members), len(x.Projects), x.AllocationID, stamp(&x.UpdatedAt))
				}
				return g.draw(w)
			})
		}),
	}
}

func (a *app) orgDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete ORG",
		Short:   "Delete an organization that has no gateway",
		Example: "  demiurge org delete 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			org, err := organization(args[0])
			if err != nil {
				return err
			}
			if err := coord.DeleteOrganization(ctx, string(org)); err != nil {
				return err
			}
			return a.done("organization_id", string(org), "deleted organization "+string(org))
		}),
	}
}

func (a *app) memberCommand() *cobra.Command {
	var username, role string
	put := &cobra.Command{
		Use:     "put ORG USER --role ROLE",
		Short:   "Add a member or change the role",
		Example: "  demiurge org member put 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 alice --role admin",
	}
	put.Flags().StringVar(&role, "role", "", "owner, admin or member")
	put.Flags().StringVar(&username, "username", "", "name to show")
	_ = put.MarkFlagRequired("role")
	put.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		org, user, err := member(args)
		if err != nil {
			return err
		}
		if !validRole(role) {
			return program.Usage("cannot use %q as --role: want owner, admin or member", role)
		}
		x, err := coord.PutMember(ctx, string(org), string(user), api.PutMember{Username: username, Role: role})
		if err != nil {
			return err
		}
		return a.printOrganization(x)
	})
	remove := &cobra.Command{
		Use:     "delete ORG USER",
		Short:   "Remove a member",
		Example: "  demiurge org member delete 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 alice",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			org, user, err := member(args)
			if err != nil {
				return err
			}
			x, err := coord.DeleteMember(ctx, string(org), string(user))
			if err != nil {
				return err
			}
			return a.printOrganization(x)
		}),
	}
	return program.Group(&cobra.Command{
		Use:     "member",
		Short:   "Change one member of an organization",
		Example: put.Example,
	}, put, remove)
}

func member(args []string) (id.Organization, id.User, error) {
	org, err := organization(args[0])
	if err != nil {
		return "", "", err
	}
	user, err := id.ParseUser(args[1])
	if err != nil {
		return "", "", program.Usage("%s", err)
	}
	return org, user, nil
}

func (a *app) projectCommand() *cobra.Command {
	var name string
	put := &cobra.Command{
		Use:     "put ORG PROJECT [--name NAME]",
		Short:   "Add a project or change its name",
		Example: "  demiurge org project put 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 board --name \"Planning board\"",
	}
	put.Flags().StringVar(&name, "name", "", "name of the project")
	put.RunE = a.call(func(ctx context.Context, coord *client.Client, args []string) error {
		org, project, err := projectOf(args)
		if err != nil {
			return err
		}
		x, err := coord.PutProject(ctx, string(org), string(project), api.PutProject{Name: name})
		if err != nil {
			return err
		}
		return a.printOrganization(x)
	})
	remove := &cobra.Command{
		Use:     "delete ORG PROJECT",
		Short:   "Remove a project",
		Example: "  demiurge org project delete 6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11 board",
		RunE: a.call(func(ctx context.Context, coord *client.Client, args []string) error {
			org, project, err := projectOf(args)
			if err != nil {
				return err
			}
			x, err := coord.DeleteProject(ctx, string(org), string(project))
			if err != nil {
				return err
			}
			return a.printOrganization(x)
		}),
	}
	return program.Group(&cobra.Command{
		Use:     "project",
		Short:   "Change one project of an organization",
		Example: put.Example,
	}, put, remove)
}

func projectOf(args []string) (id.Organization, id.Project, error) {
	org, err := organization(args[0])
	if err != nil {
		return "", "", err
	}
	project, err := id.ParseProject(args[1])
	if err != nil {
		return "", "", program.Usage("%s", err)
	}
	return org, project, nil
}

func (a *app) printOrganization(x api.Organization) error {
	return a.print(x, func(w io.Writer) error {
		if err := fields(w, "Organization", x.OrganizationID, "Name", x.Name, "Host name", x.Hostname, "Allocation", x.AllocationID,
			"Created", stamp(&x.CreatedAt), "Updated", stamp(&x.UpdatedAt)); err != nil {
			return err
		}
		if len(x.Members) > 0 {
			fmt.Fprintln(w)
			g := newGrid("MEMBER", "ROLE", "NAME")
			for _, m := range x.Members {
				g.add(m.UserID, m.Role, m.Username)
			}
			if err := g.draw(w); err != nil {
				return err
			}
		}
		if len(x.Projects) > 0 {
			fmt.Fprintln(w)
			g := newGrid("PROJECT", "NAME")
			for _, p := range x.Projects {
				g.add(p.ProjectID, p.Name)
			}
			return g.draw(w)
		}
		return nil
	})
}
