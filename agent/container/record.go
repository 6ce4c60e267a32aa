package container

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// record is what is kept of one container, in memory, in the journal and in the section. It is immutable:
// every change makes a new one.
type record struct {
	ID       ID            `json:"id"`
	Project  id.Project    `json:"project"`
	Name     string        `json:"name"`
	Creator  id.User       `json:"creator"`
	Created  time.Time     `json:"created"`
	Services []kept        `json:"services"`
	Change   steps.Change  `json:"change"` // that makes it, and, taken back, ends it
	Tokens   []hostingMark `json:"tokens,omitempty"`
	Place    *place        `json:"place,omitempty"`   // nil: down
	Request  *requestMark  `json:"request,omitempty"` // that made it, while its key is remembered
}

// kept is the stored form of a Service.
type kept struct {
	Name   ServiceName `json:"name"`
	Client string      `json:"client"`
	Paths  []string    `json:"paths,omitempty"`
	Scope  []string    `json:"scope,omitempty"`
	Public bool        `json:"public,omitempty"`
}

// hostingMark is what is kept of a hosting token: enough to know it again, not enough to make it.
type hostingMark struct {
	Digest  string    `json:"digest"` // SHA-256 of its id, hexadecimal
	Expires time.Time `json:"expires"`
}

// place is where a container said that it is.
type place struct {
	Address netip.Addr             `json:"address"`
	Ports   map[ServiceName]uint16 `json:"ports"`
	Proven  bool                   `json:"proven,omitempty"` // the announcement came from that very address
}

// clone copies all that an edit may change in place.
func (r *record) clone() *record {
	next := *r
	next.Change = r.Change.Clone()
	next.Tokens = slices.Clone(r.Tokens)
	return &next // services, places and requests are replaced, never changed
}

// good reports whether the container is whole: nothing of it holds before its last step and after its end.
func (r *record) good() bool { return r.Change.Complete() }

func (r *record) spec() Spec {
	s := Spec{Project: r.Project, Name: r.Name}
	for _, k := range r.Services {
		s.Services = append(s.Services, Service(k))
	}
	return s.clone()
}

func (r *record) service(name ServiceName) (kept, bool) {
	if name == "" && len(r.Services) > 0 {
		return r.Services[0], true
	}
	i := slices.IndexFunc(r.Services, func(k kept) bool { return k.Name == name })
	if i < 0 {
		return kept{}, false
	}
	return r.Services[i], true
}

// state is how the container is; beating tells whether its heartbeats are not overdue.
func (r *record) state(beating bool) State {
	switch {
	case r.Change.Back:
		return Deleting
	case !r.good():
		return Creating
	case r.Place != nil && beating:
		return Up
	}
	return Down
}

func (p *place) same(o *place) bool {
	if p == nil || o == nil || p.Address != o.Address || p.Proven != o.Proven || len(p.Ports) != len(o.Ports) {
		return false
	}
	for name, port := range p.Ports {
		if o.Ports[name] != port {
			return false
		}
	}
	return true
}

// spots are the addresses with ports that a place takes.
func (p *place) spots() []netip.AddrPort {
	if p == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, port := range p.Ports {
		out = append(out, netip.AddrPortFrom(p.Address, port))
	}
	return out
}

func (p *place) names() []ServiceName {
	if p == nil {
		return nil
	}
	var out []ServiceName
	for name := range p.Ports {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b ServiceName) int { return strings.Compare(string(a), string(b)) })
	return out
}
