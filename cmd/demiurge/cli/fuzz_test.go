package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/cmd/program"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzArguments: what is taken of an argument that has parts can be said again by them, and what is not taken is refused
// as a wrong use that names its option.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"ada=owner", "ada=", "ada", "=owner", "ada=owner=x", "p=A project = one", "a=b=c", "=", "", "../x=owner", "ada=owner\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		wrong := func(err error, option string) {
			var u *program.UsageError
			if !errors.As(err, &u) || !strings.Contains(err.Error(), option) {
				t.Fatalf("refused with %v", err)
			}
		}
		if members, err := parseMembers([]string{arg}); err != nil {
			wrong(err, "--member")
		} else if _, err := id.ParseUser(members[0].UserID); err != nil || members[0].UserID+"="+members[0].Role != arg || !validRole(members[0].Role) {
			t.Fatalf("%q is read as %+v", arg, members)
		}
		if projects, err := parseProjects([]string{arg}); err != nil {
			wrong(err, "--project")
		} else if p := projects[0]; p.ProjectID+"="+p.Name != arg && p.ProjectID != arg {
			t.Fatalf("%q is read as %+v", arg, p)
		}
		if kept, err := pairs("--metadata", []string{arg}); err != nil {
			wrong(err, "--metadata")
		} else if joined(kept) != arg {
			t.Fatalf("%q is read as %q", arg, joined(kept))
		}
	})
}
