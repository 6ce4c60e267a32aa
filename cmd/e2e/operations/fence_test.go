//go:build e2e

package operations

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// fence cuts a host off that serves a pool with isolation stop, and lets the agent of another one stand still for longer
// than its lease. Both organizations go to other hosts; the one that is cut off has closed what it served before that, and
// the other does as soon as its agent goes on: that agent keeps to the lease, and nothing does in its place.
func (s *site) fence() {
	s.do(s.operator, "demiurge pool set fenced --isolation stop --min-ready 3 --step 3 --max 20")
	cut, frozen := s.fenced("--pool fenced"), api.Allocation{}
	for frozen.AllocationID == "" || frozen.HostID == cut.HostID {
		frozen = s.fenced("--pool fenced")
	}
	answers := func(host, org string) string {
		return strings.TrimSpace(s.do(s.machines[host], "curl -s -o /dev/null -w '%{http_code}' -H 'Host: org-"+org+"."+zone+"' http://127.0.0.1/collab/ping || true"))
	}
	for _, a := range []api.Allocation{cut, frozen} {
		if got := answers(a.HostID, a.OrganizationID); got != "200" {
			s.t.Fatalf("organization %s is answered with %s before anything was done", a.OrganizationID, got)
		}
	}
	s.do(s.machines[cut.HostID], "nft 'add table ip cut; add chain ip cut input { type filter hook input priority 0; }; add rule ip cut input iifname eth0 drop; "+
		"add chain ip cut output { type filter hook output priority 0; }; add rule ip cut output oifname eth0 drop'")
	agent := s.machines[frozen.HostID].running["demiurge-agent"]
	s.must(agent.Signal(syscall.SIGSTOP))

	now := map[string]api.Allocation{}
	look := func() (err error) {
		for _, was := range []api.Allocation{cut, frozen} {
			if now[was.AllocationID], err = asked[api.Allocation](s.world, s.operator, "demiurge alloc show "+was.AllocationID+" -o json"); err != nil {
				return err
			}
		}
		return nil
	}
	s.await("both organizations to be served elsewhere", func() error {
		if err := look(); err != nil {
			return err
		}
		is := now[cut.AllocationID]
		if is.Epoch > cut.Epoch && answers(cut.HostID, cut.OrganizationID) == "200" {
			s.t.Fatalf("organization %s was given to host %s, and is served by %s, which is cut off", cut.OrganizationID, is.HostID, cut.HostID)
		}
		for _, was := range []api.Allocation{cut, frozen} {
			if is := now[was.AllocationID]; is.State != api.AllocationActive || is.HostID == was.HostID {
				return fmt.Errorf("allocation %s is %s on %s", is.AllocationID, is.State, is.HostID)
			}
		}
		return nil
	})

	s.must(s.machines[cut.HostID].Heal())
	s.must(agent.Signal(syscall.SIGCONT))
	s.await("one host to serve each", func() error {
		if err := look(); err != nil { // once more: it may have moved on, off a host that was to be fenced itself
			return err
		}
		for _, was := range []api.Allocation{cut, frozen} {
			is := now[was.AllocationID]
			if before, after := answers(was.HostID, was.OrganizationID), answers(is.HostID, is.OrganizationID); before != "503" || after != "200" {
				return fmt.Errorf("organization %s is answered with %s by %s, where it was, and %s by %s, where it is", was.OrganizationID, before, was.HostID, after, is.HostID)
			}
			g, err := asked[api.Gateway](s.world, s.operator, "demiurge gateway show "+was.GatewayID+" -o json")
			if err == nil && g.State != api.GatewayReady {
				err = errors.New("gateway " + g.GatewayID + " is " + g.State)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range ask[api.List[api.Allocation]](s.world, s.operator, "demiurge alloc list -o json").Items {
		if a.Pool == "fenced" {
			s.do(s.operator, "demiurge alloc stop "+a.AllocationID)
		}
	}
}

// fenced starts an organization of its own.
func (s *site) fenced(flags string) api.Allocation {
	org := string(id.NewOrganization())
	s.do(s.operator, "demiurge org put "+org+" --name fenced && demiurge alloc start "+wiped+" "+flags+" "+org)
	for _, a := range ask[api.List[api.Allocation]](s.world, s.operator, "demiurge alloc list -o json").Items {
		if a.OrganizationID == org {
			return a
		}
	}
	s.t.Fatal("organization " + org + " has no allocation")
	return api.Allocation{}
}
