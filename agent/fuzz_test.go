package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
)

// FuzzConfig: of a configuration that is taken everything can be made that the parts of the agent are told, and one that
// is not taken is refused with the place and the key.
func FuzzConfig(f *testing.F) {
	example, err := os.ReadFile("../packaging/config/agent.yaml")
	if err != nil {
		f.Fatal(err)
	}
	base := string(example)
	f.Add(base, "")
	for _, change := range []string{
		`nginx.listen=["[fe80::1%eth0]:80"]`, "gossip.listen=[::1%1]:7402", "gossip.allowed=x", "oauth.port=65536", "capacity=-1", "gossip.advertise=0.0.0.0:0",
		"nginx.workers=9223372036854775808", "gateway.stop_grace=-1s", "containers.networks=10.0.0.0/33", "login.session_lifetime=2562047h47m17s", "data_dir=relative", "run_dir=/" + strings.Repeat("x", 200),
	} {
		key, value, _ := strings.Cut(change, "=")
		f.Add(base, "DEMIURGE_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))+"="+value)
	}
	f.Fuzz(func(t *testing.T, text, variable string) {
		c := DefaultConfig()
		if _, err := config.Decode("agent.yaml", []byte(text), c, []string{variable}); err != nil {
			if !strings.Contains(err.Error(), "agent.yaml") && !strings.Contains(err.Error(), "environment variable") {
				t.Fatalf("refused without a place: %v", err)
			}
			return
		}
		n, err := c.nginxOptions(hclog.NewNullLogger())
		if err != nil {
			t.Fatalf("validated, and then nginx: %v", err)
		}
		for _, a := range append(n.Listen, n.ListenTLS...) {
			if a.Addr().Zone() != "" || a.Port() == 0 {
				t.Fatalf("nginx is to listen on %s", a)
			}
		}
		if _, err := c.memberOptions("cluster", hclog.NewNullLogger()); err != nil {
			t.Fatalf("validated, and then the gossip: %v", err)
		}
		if l := layoutOf(c); !strings.HasPrefix(l.gateways, "/") || !strings.HasPrefix(l.sockets, "/") {
			t.Fatalf("validated, and then below %q and %q", l.gateways, l.sockets)
		}
		if p := c.public(); p.Scheme != "" && (p.Port < 1 || p.Port > 65535) {
			t.Fatalf("reached at %+v", p)
		}
	})
}

// FuzzMark: a directory with whatever mark is this host's if that is what this host marks it with; else the refusal
// names the directory, and what to do.
func FuzzMark(f *testing.F) {
	c := &Config{HostID: "host-1", DataDir: "/data"}
	own := dataFormat + " " + c.HostID
	for _, s := range []string{own + "\n", own, own + "\n\n", own + " ", "demiurge-agent 1 host-2\n", "demiurge-agent 1 ", "demiurge-agent 99 host-1\n", "demiurge-agent 11 host-1", "", "\x00", own + strings.Repeat("x", 1000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		err := checkMark(c, text)
		if taken := text == own || text == own+"\n"; taken != (err == nil) {
			t.Fatalf("the mark %q: %v", text, err)
		}
		if err != nil && (len(err.Error()) > 500 || !strings.Contains(err.Error(), c.DataDir) || !strings.Contains(err.Error(), "set another data_dir")) {
			t.Fatalf("refused with %v", err)
		}
	})
}

// FuzzSecret: of whatever stands in the file of the login's secret, the secret is the one line there is, whole; a refusal
// does not repeat it.
func FuzzSecret(f *testing.F) {
	const known = "correct-horse"
	for _, s := range []string{known + "\n", " " + known + "\r\n\n", known + "\n# of the provider\n", known + "\x00", "", " \n", strings.Repeat(known, maxSecret/10), strings.Repeat("x", maxSecret), strings.Repeat("x", maxSecret+1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		secret, err := parseSecret(b)
		if err != nil {
			if secret.Reveal() != "" || len(err.Error()) > 200 || strings.Contains(err.Error(), known) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		got := secret.Reveal()
		if got == "" || len(b) > maxSecret || strings.ContainsAny(got, "\r\n\x00") || strings.Join(strings.Fields(string(b)), " ") != strings.Join(strings.Fields(got), " ") {
			t.Fatalf("%q is the secret of %q", got, b)
		}
	})
}
