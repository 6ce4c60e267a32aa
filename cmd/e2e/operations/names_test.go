//go:build e2e

package operations

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
)

const (
	zone       = "gateways.example.org"
	nameServer = "192.0.2.53"
	nameKey    = "a-key-of-the-name-server"
	keyFile    = "/etc/demiurge/powerdns.key"
)

// withNames is what a coordinator's configuration has so that it writes names into PowerDNS.
const withNames = "dns:\n  provider: powerdns\n  powerdns: {url: \"http://" + nameServer + ":8081\", key_file: " + keyFile + "}\n"

// bringNames makes a machine with PowerDNS and an empty zone.
func (s *site) bringNames() {
	m := s.machine("names", nameServer)
	s.do(m, `mkdir -p /var/lib/pdns /run/pdns
sqlite3 /var/lib/pdns/pdns.db ".read /usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"
cat >/etc/powerdns/pdns.conf <<END
launch=gsqlite3
gsqlite3-database=/var/lib/pdns/pdns.db
socket-dir=/run/pdns
local-address=0.0.0.0
webserver=yes
webserver-address=`+nameServer+`
webserver-allow-from=192.0.2.0/24
api=yes
api-key=`+nameKey+`
cache-ttl=0
query-cache-ttl=0
negquery-cache-ttl=0
zone-cache-refresh-interval=0
END
pdnsutil create-zone `+zone+` ns1.`+zone)
	s.must(m.Service("PowerDNS", filepath.Join(m.logs, "pdns.log"), "root", "", nil, "exec pdns_server --daemon=no --guardian=no").Start())
	s.until(m, "dig @127.0.0.1 +short SOA "+zone, "hostmaster."+zone)
}

// named waits until the zone names every organization that is served, where it is served, and nothing else. It looks at
// all that the name server would tell.
func (s *site) named() {
	s.t.Helper()
	if len(s.orgs) == 0 {
		return
	}
	s.await("names that equal the state", func() error {
		hosts, err := asked[api.List[api.Host]](s.world, s.operator, "demiurge host list -o json")
		if err != nil {
			return err
		}
		addresses := map[string]string{}
		for _, h := range hosts.Items {
			addresses[h.HostID] = h.Address
		}
		allocations, err := asked[api.List[api.Allocation]](s.world, s.operator, "demiurge alloc list -o json")
		if err != nil {
			return err
		}
		var want []string
		for _, a := range allocations.Items {
			if a.State != api.AllocationActive {
				return fmt.Errorf("allocation %s is %s", a.AllocationID, a.State)
			}
			name := "org-" + a.OrganizationID + "." + zone + "."
			want = append(want, name+" A "+addresses[a.HostID], "*."+name+" A "+addresses[a.HostID], fmt.Sprintf("%s TXT \"demiurge-epoch=%d\"", name, a.Epoch))
		}
		if len(want) != 3*len(s.orgs) {
			return fmt.Errorf("%d of %d are served", len(want)/3, len(s.orgs))
		}
		got, err := s.zone()
		slices.Sort(want)
		if slices.Sort(got); err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it has\n%s\nand there should be\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return err
	})
}

// zone is every record but those of the zone itself, as "name type content".
func (s *site) zone() (records []string, err error) {
	out, err := s.try(s.machines["names"], "dig @127.0.0.1 +noall +answer +onesoa AXFR "+zone)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 5 && f[0] != zone+"." {
			records = append(records, f[0]+" "+f[3]+" "+strings.Join(f[4:], " "))
		}
	}
	if err == nil && !strings.Contains(out, "SOA") {
		err = errors.New("the name server tells nothing of the zone: " + out)
	}
	return records, err
}
