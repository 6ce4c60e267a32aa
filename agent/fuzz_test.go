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
