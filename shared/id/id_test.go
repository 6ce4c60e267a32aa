package id_test

import (
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// parsers gives back what each parser makes of a text.
var parsers = map[string]func(string) (string, error){
	"organization": func(s string) (string, error) { v, err := id.ParseOrganization(s); return string(v), err },
	"project":      func(s string) (string, error) { v, err := id.ParseProject(s); return string(v), err },
	"user":         func(s string) (string, error) { v, err := id.ParseUser(s); return string(v), err },
	"host":         func(s string) (string, error) { v, err := id.ParseHost(s); return string(v), err },
	"pool":         func(s string) (string, error) { v, err := id.ParsePool(s); return string(v), err },
	"gateway":      func(s string) (string, error) { v, err := id.ParseGateway(s); return string(v), err },
	"allocation":   func(s string) (string, error) { v, err := id.ParseAllocation(s); return string(v), err },
	"token":        func(s string) (string, error) { v, err := id.ParseToken(s); return string(v), err },
	"join token":   func(s string) (string, error) { v, err := id.ParseJoinToken(s); return string(v), err },
	"epoch":        func(s string) (string, error) { v, err := id.ParseEpoch(s); return v.String(), err },
	"domain":       id.ParseDomain,
	"term": func(s string) (string, error) {
		org, epoch, err := id.ParseTermName(s)
		return id.TermName(org, epoch), err
	},
}

// FuzzParse: what is taken for an id has nothing in it that means something to nginx, a shell, a path or a log, is
// read back as itself, and cannot be two texts.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11", "6F1C0A2E-58A5-4A3E-9A55-0A5A1F5C7B11", "gw-aaaaaaaaaa", "al-aaaaaaaaaaaaaaaa",
		"host-1", "dev.localhost", "17",
		"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.17", "6F1C0A2E-58A5-4A3E-9A55-0A5A1F5C7B11.17", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.017", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.1.2",
		"alice@example.org", "a;b", "{ a }", "$host", "a\nb", "../../etc/passwd", "..", ".", "", "-a", "a b",
		"a\x00b", "ä", "~^x", "*.test", "dev.test:7480", strings.Repeat("a", 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for kind, parse := range parsers {
			got, err := parse(s)
			if err != nil {
				continue
			}
			if strings.ContainsAny(got, ";{}$\\\"'`<>*~#&|()/ \t\r\n\x00") || got == ".." || strings.HasPrefix(got, "-") {
				t.Errorf("%q is taken as %s %q", s, kind, got)
			}
			if got != s && kind != "organization" { // which is read in any letter case
				t.Errorf("%q is taken as %s %q", s, kind, got)
			}
			if again, err := parse(got); err != nil || again != got || !strings.EqualFold(got, s) {
				t.Errorf("%q is taken as %s %q, and that as %q, %v", s, kind, got, again, err)
			}
		}
	})
}

// A name of a file that is read leads to that file: one in another form is none.
func TestHidden(t *testing.T) {
	for _, r := range "\n\t\x00\x7f\u0085\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2066\u2069\ufeff\U000e0041" {
		if !id.Hidden(r) {
			t.Errorf("%U can be seen", r)
		}
	}
	for _, r := range " aÄß漢ش\u0301\u200c\u200d😀" {
		if id.Hidden(r) {
			t.Errorf("%U cannot be seen", r)
		}
	}
}

func TestTermNamesHaveOneForm(t *testing.T) {
	const org = id.Organization("6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11")
	got, epoch, err := id.ParseTermName(id.TermName(org, 17))
	if err != nil || got != org || epoch != 17 {
		t.Errorf("%s %s %v", got, epoch, err)
	}
	for _, bad := range []string{
		strings.ToUpper(string(org)) + ".17", string(org) + ".017", string(org) + ".0", string(org) + ".", string(org), string(org) + ".17.", string(org) + ".+17",
		"../" + string(org) + ".17", "", ".",
	} {
		if got, epoch, err := id.ParseTermName(bad); err == nil || !strings.Contains(err.Error(), "<organization id>.<epoch>") {
			t.Errorf("%q is read as %s %s, %v", bad, got, epoch, err)
		}
	}
}
