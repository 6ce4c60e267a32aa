package container

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Announcement is what a container says of itself, again and again: every time is a heartbeat.
type Announcement struct {
	Address netip.Addr // invalid: Source
	Source  netip.Addr // that the announcement came from
	Ports   map[ServiceName]uint16
}

// Heard is the answer to an announcement.
type Heard struct {
	Heartbeat time.Duration // how often it should be repeated
	Patience  time.Duration // after how long without one the container counts as down
}

// Announce takes a container's word for where it is. The hosting token says which one it is; the address
// must lie in the host's networks for containers.
func (r *Registry) Announce(c ID, token string, a Announcement) (Heard, error) {
	if err := r.authenticate(c, token); err != nil {
		return Heard{}, err
	}
	p, err := r.place(c, a)
	if err != nil {
		return Heard{}, err
	}
	heard := Heard{Heartbeat: r.opts.Patience / 3, Patience: r.opts.Patience}
	if r.beat(c, p) {
		return heard, nil
	}
	if err := r.host.claim(r, c, p); err != nil {
		return Heard{}, err
	}
	return heard, nil
}

// place checks an announcement.
func (r *Registry) place(c ID, a Announcement) (*place, error) {
	rec, err := r.current(c)
	if err != nil {
		return nil, err
	}
	if len(a.Ports) == 0 {
		return nil, fault.Invalid("services", "container %s announces no service: name at least one of those that it declares, with its port", c)
	}
	p := &place{Address: a.Address.Unmap(), Ports: map[ServiceName]uint16{}}
	source := a.Source.Unmap()
	if !a.Address.IsValid() {
		p.Address = source
	}
	p.Proven = p.Address == source
	taken := map[uint16]ServiceName{}
	for name, port := range a.Ports {
		if _, ok := rec.service(name); !ok || name == "" {
			return nil, fault.Invalid("services", "container %s does not declare the service %q", c, fault.Shorten(string(name)))
		}
		if port == 0 {
			return nil, fault.Invalid("services", "the port of service %s is missing: give 1 to 65535", name)
		}
		if other, twice := taken[port]; twice {
			return nil, fault.Invalid("services", "services %s and %s have the same port: give each its own", min(name, other), max(name, other))
		}
		taken[port] = name
		p.Ports[name] = port
	}
	if err := r.opts.reachable(p.Address); err != nil {
		return nil, err
	}
	return p, nil
}

// reachable reports whether containers may be at an address. Nothing is allowed that is not in a network of
// the configuration; and there are addresses at which no container is whatever network they are in: groups,
// those of the link, which clouds use for secrets of the machine, and the host's own, where the platform
// itself listens, unless the network names the loopback or exactly that address.
func (o *Options) reachable(a netip.Addr) error {
	refused := func(why string) error {
		return fault.Invalid("address", "container cannot be reached at %s: %s", a, why)
	}
	if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return refused("that is no address of a container")
	}
	for _, n := range o.Networks {
		if !n.Contains(a) || a.IsLoopback() && !n.Addr().IsLoopback() {
			continue
		}
		if n.IsSingleIP() || a.IsLoopback() {
			return nil
		}
		own, err := o.Own()
		switch {
		case err != nil:
			return refused("this host cannot tell its own addresses at the moment; try again")
		case slices.Contains(own, a):
			return refused("that is this host itself")
		}
		return nil
	}
	return refused("it is in no network for containers of this host; its operator sets them as containers.networks")
}

// beat takes an announcement that says nothing new. It writes nothing to disk.
func (r *Registry) beat(c ID, p *place) bool {
	now := r.opts.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.containers[c]
	if e == nil || r.closed || !e.good() || !e.beating(now) || !e.Place.same(p) {
		return false
	}
	e.seen, e.deadline = now, now.Add(r.opts.Patience)
	return true
}

// claim gives a container its place, unless another one is there: then whoever gets requests for the one
// would get them for the other. Who announces itself from the very address goes before who only names it.
func (o *Organizations) claim(r *Registry, c ID, p *place) error {
	o.claiming.Lock()
	defer o.claiming.Unlock()
	for _, spot := range p.spots() {
		for _, other := range o.list() {
			taken, proven, found := other.taker(spot, c, o.opts.Now())
			if !found {
				continue
			}
			if !p.Proven || proven {
				return fault.New(fault.Conflict, "another container is at %s: end that one, or give this one another address or port", spot)
			}
			if err := other.fall(taken, true); err != nil {
				return err
			}
		}
	}
	return r.settleAt(c, p)
}

// settleAt makes a container's place durable and its heart beat.
func (r *Registry) settleAt(c ID, p *place) error {
	if _, err := r.change(c, false, func(next *record) error {
		if !next.good() {
			return notFound(c)
		}
		next.Place = p
		return nil
	}); err != nil {
		return err
	}
	now := r.opts.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.containers[c]; e != nil {
		e.seen, e.deadline = now, now.Add(r.opts.Patience)
		r.host.await(r, e)
	}
	return nil
}

// fall makes a container down whose heartbeat stayed away, or which has to give way (now). The host's claiming is
// held, so that no announcement comes in between.
func (r *Registry) fall(c ID, now bool) error {
	r.mu.Lock()
	e := r.containers[c]
	if e == nil || r.closed || e.Place == nil || !now && e.beating(r.opts.Now()) {
		r.mu.Unlock()
		return nil
	}
	e.deadline = time.Time{} // from here on it is down, whatever the disk says
	r.mu.Unlock()
	r.host.count(func(s *Stats) { s.Downs++ })
	r.logger.Info("a container is down", "container", c)
	_, err := r.change(c, true, func(next *record) error {
		next.Place = nil
		return nil
	})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("cannot note that container %s is down: %w", c, err)
	}
	return nil
}
