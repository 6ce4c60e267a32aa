package dev

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// FuzzPorts: whatever stands in ports.json, it is as many coordinators and hosts as a system may have, with addresses on
// loopback, and is written and read as the same; or it is refused with its name and what to do.
func FuzzPorts(f *testing.F) {
	one := `{"coordinators":[{"api":"127.0.0.1:7400","raft":"127.0.0.1:7401","gossip":"127.0.0.1:7402"}],"hosts":[{"gossip":"127.0.0.1:7403","nginx":"127.0.0.1:7480"}]}`
	for _, s := range []string{
		one, `{"api":"127.0.0.1:1","raft":"127.0.0.1:2","gossip":"127.0.0.1:3","member":"127.0.0.1:4","nginx":"127.0.0.1:5"}`,
		strings.Replace(one, "127.0.0.1:7401", ":7401", 1), strings.Replace(one, "127.0.0.1:7401", "192.0.2.1:7401", 1), strings.Replace(one, "127.0.0.1:7401", "localhost:7401", 1),
		strings.Replace(one, "127.0.0.1:7480", "127.0.0.1:0", 1), strings.Replace(one, "127.0.0.1:7402", "[::1]:7402", 1), strings.Replace(one, "127.0.0.1:7402", "", 1),
		`{"coordinators":[{},{}],"hosts":[{}]}`, `{"coordinators":[{}],"hosts":[` + strings.Repeat("{},", 1000) + `{}]}`, "{}", "null", "", one[:50], one + one,
	} {
		f.Add([]byte(s))
	}
	h := &home{dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(h.portsFile(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := h.earlierPorts()
		if err != nil {
			if !strings.Contains(err.Error(), h.portsFile()) || !strings.Contains(err.Error(), "; remove it") || len(err.Error()) > 1000 {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		for _, address := range p.all() {
			if a, err := netip.ParseAddrPort(address); address != "" && (err != nil || !a.Addr().IsLoopback()) {
				t.Fatalf("%q would be listened on", address)
			}
		}
		o := free(0, 0)
		if o, err = o.sized(h.dir, p); err != nil || o.Coordinators != len(p.Coordinators) || o.Hosts != len(p.Hosts) {
			t.Fatalf("%d coordinators and %d hosts are taken up as %d and %d, %v", len(p.Coordinators), len(p.Hosts), o.Coordinators, o.Hosts, err)
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parsePorts(text); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", b, p, again, err)
		}
	})
}
