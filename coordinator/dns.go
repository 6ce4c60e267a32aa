package coordinator

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// openDNS makes the provider and, if it is the embedded one, binds its server: every coordinator answers,
// from its own copy of the state.
func (c *Coordinator) openDNS() error {
	cfg := c.opts.Config
	var err error
	c.names, err = dns.New(dns.Options{Config: cfg.DNS, Domain: cfg.Domain, Logger: c.log.Named("dns")})
	if err != nil || cfg.DNS.Provider != dns.ProviderEmbedded {
		return err
	}
	server, err := dns.Listen(dns.ServerOptions{Config: cfg.DNS, Domain: cfg.Domain, Source: answers{c.store}, Logger: c.log.Named("dns")})
	if err != nil {
		return err
	}
	c.stack.PushClose("DNS server", server.Close)
	c.stack.Go("DNS server", func(ctx context.Context) {
		if err := server.Run(ctx); err != nil && ctx.Err() == nil {
			c.failed <- fmt.Errorf("the DNS server stopped: %w", err)
		}
	})
	return nil
}

// stepNames is what the step dns of an allocation writes with; nil where no record has to be written.
func (c *Coordinator) stepNames() allocator.Names {
	if c.opts.Config.DNS.Provider != dns.ProviderPowerDNS {
		return nil
	}
	return names{c}
}

// names makes the records of the step dns.
type names struct{ c *Coordinator }

// Point implements allocator.Names.
func (n names) Point(ctx context.Context, name allocator.Name) error {
	h := n.c.store.View().Host(nil, name.Host)
	if h == nil {
		return fault.New(fault.DNSFailed, "cannot point DNS to host %s: it was deleted meanwhile", name.Host)
	}
	addresses, err := dns.ParseAddresses(h.Report.Address)
	if err != nil {
		return fault.New(fault.DNSFailed, "host %s: %v", name.Host, err)
	}
	cfg := n.c.opts.Config
	return n.c.names.Ensure(ctx, dns.Record{
		Name: id.Hostname(name.Organization, cfg.Domain), Addresses: addresses, TTL: cfg.DNS.TTL, Epoch: name.Epoch, Instead: name.Instead,
	})
}

// Remove implements allocator.Names.
func (n names) Remove(ctx context.Context, org id.Organization, upTo id.Epoch) error {
	return n.c.names.Remove(ctx, id.Hostname(org, n.c.opts.Config.Domain), upTo)
}

// Passing implements allocator.Names.
func (names) Passing(err error) bool { return dns.KindOf(err) == dns.Temporary }

// answers is the state as the embedded server reads it.
type answers struct{ store *state.Store }

// Addresses is where an organization is served; false when it is not.
func (a answers) Addresses(org id.Organization) ([]netip.Addr, bool) {
	v := a.store.View()
	alloc := v.LiveAllocation(nil, org)
	if alloc == nil || alloc.State == state.AllocationQueued || alloc.State.Ending() {
		return nil, false
	}
	return hostAddresses(v, alloc)
}

// Index is what the zone's serial is made from.
func (a answers) Index() uint64 { return a.store.View().Index() }

func hostAddresses(v state.View, alloc *state.Allocation) ([]netip.Addr, bool) {
	g := v.Gateway(nil, alloc.Gateway)
	if g == nil {
		return nil, false
	}
	h := v.Host(nil, g.Host)
	if h == nil {
		return nil, false
	}
	addresses, err := dns.ParseAddresses(h.Report.Address)
	return addresses, err == nil
}

// wantedNames is every record that the state wants, with a channel that is closed when the state has
// changed. The steps of an allocation that is not active yet, or that ends, own its record. That of one which
// moves points to what serves it: to its old host until the new one is confirmed, or, where the old one is lost,
// to the new one as soon as that is chosen.
func (c *Coordinator) wantedNames() ([]dns.Wanted, <-chan struct{}) {
	_, changed, _ := c.store.Events(c.store.LastEvent(), 1)
	v, cfg := c.store.View(), c.opts.Config
	var out []dns.Wanted
	for a := range v.LiveAllocations(nil) {
		addresses, ok := hostAddresses(v, a)
		if !ok {
			continue
		}
		latest := a.Epoch
		if grant, ok := a.Pending(); ok {
			latest = max(latest, grant.Epoch)
		}
		out = append(out, dns.Wanted{
			Latest:  latest,
			Record:  dns.Record{Name: id.Hostname(a.Organization, cfg.Domain), Addresses: addresses, TTL: cfg.DNS.TTL, Epoch: a.Epoch},
			Pending: a.State != state.AllocationActive && a.State != state.AllocationRelocating,
		})
	}
	return out, changed
}
