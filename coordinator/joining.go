package coordinator

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// joins is what the API needs to let programs in.
type joins struct {
	*trust.Keeper
	c *Coordinator
}

// Cluster is where the others are and, as far as the role needs them, the secrets of the cluster. The cluster
// key goes to coordinators alone: with it and the record they know everything that this one knows.
func (j joins) Cluster(role pki.Role) api.JoinCluster {
	out := api.JoinCluster{ClusterID: j.Keeper.Cluster(), GossipKey: j.Keyring()[0]}
	members := j.c.members.Snapshot().Coordinators
	for _, name := range slices.Sorted(maps.Keys(members)) {
		m := members[name]
		if m.Status != gossip.StatusAlive {
			continue
		}
		if address := m.Tags[tagAPI]; address != "" {
			out.APIAddresses = append(out.APIAddresses, address)
		}
		if address := m.Tags[tagRaft]; address != "" && role == pki.RoleCoordinator {
			out.RaftAddresses = append(out.RaftAddresses, address)
		}
	}
	out.SerfAddresses = j.c.gossipAccess().Addresses
	if role == pki.RoleCoordinator {
		record, err := json.Marshal(j.Record())
		if err != nil {
			j.c.log.Error("cannot encode the cluster's certificates", "error", err) // strings and bytes always can be
		}
		out.ClusterKey, out.Trust = j.Key().Reveal(), record
	}
	return out
}

// gossipAccess is how agents enter the gossip: by any coordinator that did not leave it.
func (c *Coordinator) gossipAccess() api.GossipAccess {
	out := api.GossipAccess{Addresses: []string{c.gossip.Addr().String()}, Keys: c.trust.Keyring()}
	for _, m := range c.members.Snapshot().Coordinators {
		if m.Status != gossip.StatusLeft && m.Name != c.opts.Config.NodeID {
			out.Addresses = append(out.Addresses, m.Address.String())
		}
	}
	slices.Sort(out.Addresses)
	return out
}

// tellAgents keeps the agents' knowledge of the gossip, and of the CA, up to date. The view of the members changes with
// every host's health, so it is looked at at a steady rate.
func (c *Coordinator) tellAgents(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		c.link.SetAccess(c.gossipAccess(), c.trust.Bundle().PEM())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// apiAddress is where agents reach this coordinator's API.
func (c *Coordinator) apiAddress() string {
	if configured := c.opts.Config.API.Advertise; configured != "" {
		return configured
	}
	bound, err := netip.ParseAddrPort(c.listener.Addr().String())
	if err != nil || !bound.Addr().IsUnspecified() {
		return c.listener.Addr().String()
	}
	for _, g := range []string{c.opts.Config.Gossip.Advertise, c.opts.Config.Gossip.Listen} { // the same machine
		if a, err := netip.ParseAddrPort(g); err == nil && !a.Addr().IsUnspecified() {
			return netip.AddrPortFrom(a.Addr(), bound.Port()).String()
		}
	}
	return bound.String()
}

// certifiedHosts are the names and addresses in this coordinator's certificate: by default where it listens.
func certifiedHosts(cfg *Config) []string {
	if len(cfg.API.Hosts) > 0 {
		return cfg.API.Hosts
	}
	var out []string
	for _, address := range []string{cfg.API.Advertise, cfg.API.Listen} {
		host, _, err := net.SplitHostPort(address)
		if err != nil || host == "" {
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			if ip.IsUnspecified() {
				continue
			}
			if ip.IsLoopback() {
				out = append(out, "localhost")
			}
		}
		out = append(out, host)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
