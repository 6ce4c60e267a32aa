package lawtest

import (
	"slices"
	"strings"
	"testing"
)

// law refuses an edge of the import graph, or has nothing to say about it ("").
type law func(from, to string) string

// The walls between the parts. Paths are relative to the module.
var laws = map[string]law{
	"shared imports only shared": func(from, to string) string {
		if below(from, "shared") && !below(to, "shared") {
			return "shared is beneath every program; whatever it imports, all of them carry"
		}
		return ""
	},
	"coordinator and agent never import each other": func(from, to string) string {
		if below(from, "coordinator") && below(to, "agent") || below(from, "agent") && below(to, "coordinator") {
			return "they run on different machines in different versions and meet only in shared/api"
		}
		return ""
	},
	"agent and agent/gateway never import each other": func(from, to string) string {
		inAgent := func(path string) bool { return below(path, "agent") && !below(path, "agent/gateway") }
		if inAgent(from) && below(to, "agent/gateway") || below(from, "agent/gateway") && inAgent(to) {
			return "a gateway is a process of its own that any program keeping the contract can replace; they meet in shared/api"
		}
		return ""
	},
	"nothing outside cmd imports cmd": func(from, to string) string {
		if below(to, "cmd") && !below(from, "cmd") {
			return "cmd only turns flags and signals into options; what others need belongs in a package below the root"
		}
		return ""
	},
	"a root package is not imported from beneath": func(from, to string) string {
		kits := []string{"coordinator/coordtest", "agent/agenttest"}
		for _, top := range []string{"coordinator", "agent", "agent/gateway"} {
			if to == top && below(from, top) && from != top && !slices.Contains(kits, from) {
				return "a root package only wires; what is beneath it is handed what it needs (its test kit excepted)"
			}
		}
		return ""
	},
	"a program of cmd imports one root package": func(from, to string) string {
		roots := map[string][]string{
			"cmd/demiurge-coordinator": {"coordinator"},
			"cmd/demiurge-agent":       {"agent"},
			"cmd/demiurge-gateway":     {"agent/gateway"},
			"cmd/demiurge":             {"coordinator", "agent"}, // both, for `demiurge dev`
		}
		if !below(to, "coordinator") && !below(to, "agent") {
			return ""
		}
		for program, allowed := range roots {
			if below(from, program) && !slices.Contains(allowed, to) {
				return "a program's main translates flags, environment and signals for " + strings.Join(allowed, " or ") + ", and has no logic of its own"
			}
		}
		return ""
	},
}

func TestImportLaws(t *testing.T) {
	for _, p := range packages(t) {
		for name, law := range laws {
			for _, imported := range p.imports {
				to, ours := strings.CutPrefix(imported, module+"/")
				if !ours {
					continue
				}
				if reason := law(p.path, to); reason != "" {
					t.Errorf("%s imports %s\n\trule: %s\n\twhy:  %s", p.path, to, name, reason)
				}
			}
			// Tests of a package may look at the root from outside, and are bound by every other wall.
			for _, imported := range p.tests {
				to, ours := strings.CutPrefix(imported, module+"/")
				if !ours || name == "a root package is not imported from beneath" {
					continue
				}
				if reason := law(p.path, to); reason != "" {
					t.Errorf("the tests of %s import %s\n\trule: %s\n\twhy:  %s", p.path, to, name, reason)
				}
			}
		}
	}
}

// The laws must refuse what they are about, or they prove nothing.
func TestImportLawsRefuse(t *testing.T) {
	for _, edge := range [][2]string{
		{"shared/api", "coordinator/state"},
		{"coordinator/allocator", "agent/nginx"},
		{"agent/syncer", "coordinator"},
		{"agent/driver/process", "agent/gateway"},
		{"agent/gateway/wire", "agent/journal"},
		{"coordinator/httpapi", "cmd/demiurge/cli"},
		{"coordinator/fsm", "coordinator"},
		{"agent/nginx", "agent"},
		{"cmd/demiurge-agent", "agent/nginx"},
		{"cmd/demiurge-gateway", "agent"},
	} {
		refused := false
		for _, law := range laws {
			refused = refused || law(edge[0], edge[1]) != ""
		}
		if !refused {
			t.Errorf("no law refuses that %s imports %s", edge[0], edge[1])
		}
	}
	for _, edge := range [][2]string{
		{"coordinator/httpapi", "shared/api"},
		{"cmd/demiurge-gateway", "agent/gateway"},
		{"agent/gateway", "agent/gateway/wire"},
		{"agent/agenttest", "agent"},
		{"coordinator/fsm", "coordinator/state"},
	} {
		for name, law := range laws {
			if reason := law(edge[0], edge[1]); reason != "" {
				t.Errorf("%q refuses that %s imports %s: %s", name, edge[0], edge[1], reason)
			}
		}
	}
}

// library is a third-party module and the packages (with what is beneath them) that may import it.
type library struct {
	module string
	homes  []string
	tests  bool // tests of any package may import it too
}

// Everywhere is the home of what has no behaviour that a wall could contain.
const everywhere = ""

var libraries = []library{
	{module: "github.com/hashicorp/raft-wal", homes: []string{"coordinator/consensus"}},
	{module: "github.com/hashicorp/raft", homes: []string{"coordinator/consensus", "coordinator/fsm"}, tests: true}, // fsm, and tests that drive it: the interface that it fulfils
	{module: "github.com/hashicorp/serf", homes: []string{"shared/gossip"}},
	{module: "github.com/hashicorp/memberlist", homes: []string{"shared/gossip"}},
	{module: "github.com/hashicorp/go-metrics", homes: []string{"coordinator/consensus", "coordinator/metrics"}},
	{module: "github.com/hashicorp/go-memdb", homes: []string{"coordinator/state"}},
	{module: "github.com/hashicorp/go-hclog", homes: []string{everywhere}},
	{module: "github.com/danielgtaylor/huma/v2", homes: []string{"coordinator/httpapi"}, tests: true},
	{module: "github.com/fsnotify/fsnotify", homes: []string{"shared/config", "agent/nginx"}},
	{module: "github.com/coreos/go-systemd/v22", homes: []string{"shared/notify"}},
	{module: "github.com/goccy/go-yaml", homes: []string{"shared/config"}, tests: true},
	{module: "github.com/prometheus/client_golang", homes: []string{"coordinator/metrics", "agent"}, tests: true},
	{module: "github.com/prometheus/client_model", homes: nil, tests: true},
	{module: "github.com/prometheus/common", homes: nil, tests: true},
	{module: "github.com/coder/websocket", homes: []string{"agent/gateway"}, tests: true},
	{module: "github.com/miekg/dns", homes: []string{"coordinator/dns"}, tests: true},
	{module: "github.com/golang-jwt/jwt/v5", homes: []string{"shared/usertoken"}},
	{module: "github.com/go-jose/go-jose/v4", homes: []string{"shared/usertoken"}},
	{module: "github.com/spf13/cobra", homes: []string{"cmd"}},
	{module: "github.com/spf13/pflag", homes: []string{"cmd"}},
	{module: "github.com/schollz/progressbar/v3", homes: []string{"cmd/demiurge"}},
	{module: "golang.org/x/term", homes: []string{"cmd/demiurge"}},
	{module: "golang.org/x/sys", homes: []string{everywhere}},
	{module: "golang.org/x/sync", homes: []string{everywhere}},
	{module: "github.com/coreos/go-oidc/v3", homes: []string{"agent/tenantapi"}},
	{module: "github.com/zitadel/oidc/v3", homes: nil, tests: true},   // an OpenID provider that others wrote
	{module: "github.com/chromedp/chromedp", homes: nil, tests: true}, // drives a real browser
	{module: "golang.org/x/oauth2", homes: []string{"agent/tenantapi"}, tests: true},
	{module: "pgregory.net/rapid", homes: nil, tests: true},
	{module: "go.uber.org/goleak", homes: nil, tests: true},
	{module: "github.com/rogpeppe/go-internal", homes: nil, tests: true},
	{module: "github.com/anishathalye/porcupine", homes: []string{"cmd/e2e/check"}},
}

// refuse says why a package may not import a third-party package, or "".
func refuse(from, imported string, test bool) string {
	at := slices.IndexFunc(libraries, func(l library) bool { return below(imported, l.module) })
	if at < 0 {
		return "the library has no home yet: name it in the table of libraries in shared/lawtest, if the standard library really cannot do it"
	}
	l := libraries[at]
	if test && l.tests {
		return ""
	}
	for _, home := range l.homes {
		if home == everywhere || below(from, home) {
			return ""
		}
	}
	if len(l.homes) == 0 {
		return "it is for tests only"
	}
	return "its home is " + strings.Join(l.homes, " and ") + "; a library in one place can be replaced, mended and faked there"
}

func TestLibrariesHaveOneHome(t *testing.T) {
	for _, p := range packages(t) {
		check := func(imports []string, test bool) {
			for _, imported := range imports {
				domain, _, _ := strings.Cut(imported, "/")
				if !strings.Contains(domain, ".") || below(imported, module) {
					continue // the standard library and ourselves
				}
				if reason := refuse(p.path, imported, test); reason != "" {
					t.Errorf("%s imports %s (test: %t)\n\trule: each third-party library has one home\n\twhy:  %s", p.path, imported, test, reason)
				}
			}
		}
		check(p.imports, false)
		check(p.tests, true)
	}
}

func TestLibraryTableRefuses(t *testing.T) {
	for _, c := range []struct {
		from, imported string
		test, ok       bool
	}{
		{"coordinator/consensus", "github.com/hashicorp/raft", false, true},
		{"coordinator/consensus", "github.com/hashicorp/raft-wal/types", false, true},
		{"coordinator/fsm", "github.com/hashicorp/raft", false, true},
		{"coordinator/fsm", "github.com/hashicorp/raft-wal", false, false},
		{"coordinator/allocator", "github.com/hashicorp/raft", false, false},
		{"coordinator/allocator", "github.com/hashicorp/raft-wal", true, false},
		{"agent/nginx", "pgregory.net/rapid", false, false},
		{"agent/nginx", "pgregory.net/rapid", true, true},
		{"agent/nginx", "github.com/unheard/of", true, false},
	} {
		if got := refuse(c.from, c.imported, c.test) == ""; got != c.ok {
			t.Errorf("%s imports %s (test: %t): allowed %t, want %t", c.from, c.imported, c.test, got, c.ok)
		}
	}
}
