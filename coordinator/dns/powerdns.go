package dns

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// marker begins the TXT record that stands beside an organization's addresses and holds the epoch. It is
// what keeps the undo of an old grant from taking away the record of a later one, also when both are on
// the same host, and also on another coordinator than the one that wrote it.
const marker = "demiurge-epoch="

// powerDNS keeps records in a zone of PowerDNS. Its API has no conditional writes: between a look at the
// epoch and the write that follows, only this process is kept away. A former leader that is still
// writing can be in between; the repair loop of the present one puts that right.
type powerDNS struct {
	api    *client
	domain string
	log    hclog.Logger
	// locks are taken, one by the hash of the organization's name, for the time between look and write.
	locks [64]chan struct{}
	seed  maphash.Seed
}

func newPowerDNS(opts Options) (*powerDNS, error) {
	if err := opts.Config.Validate("dns", opts.Domain); err != nil {
		return nil, fmt.Errorf("cannot use PowerDNS: %w", err)
	}
	p := &powerDNS{
		api: newClient(opts.Config.PowerDNS, opts.Domain, maxAnswer), domain: opts.Domain,
		log: opts.Logger.Named("powerdns"), seed: maphash.MakeSeed(),
	}
	for i := range p.locks {
		p.locks[i] = make(chan struct{}, 1)
	}
	return p, nil
}

// held is what PowerDNS has at one name.
type held struct {
	addresses []netip.Addr
	ttl       time.Duration
	epoch     id.Epoch
	foreign   bool // an alias, a second TTL, or content that is no address: nothing that Ensure writes
	any       bool // there is something that Remove removes
}

// matches reports whether a name holds exactly the addresses and TTL of a record.
func (h held) matches(r Record) bool {
	return !h.foreign && h.ttl == r.TTL && slices.Equal(h.addresses, normal(r.Addresses))
}

// Ensure implements Provider.
func (p *powerDNS) Ensure(ctx context.Context, r Record) error {
	owner, ours := split(r.Name, p.domain)
	if !ours || owner != r.Name || len(r.Addresses) == 0 || r.TTL < time.Second || r.TTL%time.Second != 0 {
		return failed(&Error{Kind: Refused}, "cannot make the DNS record %s with %d addresses and TTL %s: want org-<uuid>.%s, an address, and whole seconds", r.Name, len(r.Addresses), r.TTL, p.domain)
	}
	unlock, err := p.lock(ctx, owner)
	if err != nil {
		return err
	}
	defer unlock()
	kept, err := p.look(ctx, r)
	if err != nil || kept {
		return err
	}
	if err := p.api.change(ctx, replacements(r)); err != nil {
		return err
	}
	kept, err = p.look(ctx, r)
	if err == nil && !kept {
		return failed(&Error{Kind: Lying}, "PowerDNS at %s accepted the record %s and does not have it: look whether another program writes to the zone %s, and whether its API and its records are of the same database", p.api.server, r.Name, p.api.zone)
	}
	return err
}

// look reports whether a record is as it should be. It fails when there is one of a higher epoch, but for the one that it takes the place of.
func (p *powerDNS) look(ctx context.Context, r Record) (bool, error) {
	h, err := p.at(ctx, r.Name)
	if err != nil {
		return false, err
	}
	if h.epoch > r.Epoch && h.epoch != r.Instead {
		return false, fault.New(fault.Superseded, "the DNS record %s belongs to a later grant (epoch %s) than this one (epoch %s): nothing was changed", r.Name, h.epoch, r.Epoch)
	}
	if h.epoch != r.Epoch || !h.matches(r) {
		return false, nil
	}
	below, err := p.at(ctx, wildcard(r.Name))
	return err == nil && below.matches(r), err
}

// Remove implements Provider.
func (p *powerDNS) Remove(ctx context.Context, name string, upTo id.Epoch) error {
	owner, ours := split(name, p.domain)
	if !ours {
		return failed(&Error{Kind: Refused}, "cannot remove the DNS record %s: only org-<uuid>.%s and names below are removed", name, p.domain)
	}
	unlock, err := p.lock(ctx, owner)
	if err != nil {
		return err
	}
	defer unlock()
	top, err := p.at(ctx, owner)
	if err != nil {
		return err
	}
	if top.epoch > upTo {
		p.log.Debug("a record belongs to a later grant and stays", "name", name, "epoch", top.epoch, "asked", upTo)
		return nil
	}
	names := []string{name}
	if name == owner {
		names = append(names, wildcard(owner))
	}
	if gone, err := p.gone(ctx, names); err != nil || gone {
		return err
	}
	if err := p.api.change(ctx, removals(names)); err != nil {
		return err
	}
	gone, err := p.gone(ctx, names)
	if err == nil && !gone {
		return failed(&Error{Kind: Lying}, "PowerDNS at %s accepted to remove the record %s and still has it: look whether another program writes to the zone %s, and whether its API and its records are of the same database", p.api.server, name, p.api.zone)
	}
	return err
}

// gone reports whether none of the names holds anything.
func (p *powerDNS) gone(ctx context.Context, names []string) (bool, error) {
	for _, name := range names {
		if h, err := p.at(ctx, name); err != nil || h.any {
			return false, err
		}
	}
	return true, nil
}

// List implements Provider.
func (p *powerDNS) List(ctx context.Context) ([]Record, error) {
	sets, err := p.api.sets(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []Record
	for name, h := range gather(sets) {
		if _, ours := split(name, p.domain); !ours || !h.any {
			continue
		}
		r := Record{Name: name, Addresses: h.addresses, TTL: h.ttl, Epoch: h.epoch}
		if h.foreign {
			r.Addresses = nil // differs from every record that is wanted
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// at reads what is held at one name.
func (p *powerDNS) at(ctx context.Context, name string) (held, error) {
	sets, err := p.api.sets(ctx, name)
	if err != nil {
		return held{}, err
	}
	return gather(sets)[name], nil
}

// lock keeps all others of this process from an organization's records.
func (p *powerDNS) lock(ctx context.Context, owner string) (unlock func(), err error) {
	l := p.locks[maphash.String(p.seed, owner)%uint64(len(p.locks))]
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, p.api.unanswered(ctx.Err())
	}
}

// gather sorts sets by name. A disabled record is not there.
func gather(sets []rrset) map[string]held {
	out := map[string]held{}
	for _, set := range sets {
		name := canonical(set.Name)
		h := out[name]
		for _, r := range set.Records {
			if !r.Disabled {
				h.add(set, r.Content)
			}
		}
		out[name] = h
	}
	for name, h := range out {
		h.addresses = normal(h.addresses)
		out[name] = h
	}
	return out
}

// canonical is a name of the API as this package has it.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// leads reports whether records of a type say where a name leads, or by which grant.
func leads(kind string) bool {
	return kind == "A" || kind == "AAAA" || kind == "CNAME" || kind == "TXT"
}

func (h *held) add(set rrset, content string) {
	switch set.Type {
	case "A", "AAAA":
		ttl := time.Duration(set.TTL) * time.Second
		h.foreign = h.foreign || len(h.addresses) > 0 && h.ttl != ttl
		h.ttl, h.any = ttl, true
		a, err := netip.ParseAddr(content)
		h.foreign = h.foreign || err != nil
		h.addresses = append(h.addresses, a)
	case "CNAME":
		h.foreign, h.any = true, true
	case "TXT":
		text, found := strings.CutPrefix(strings.Trim(content, `"`), marker)
		if epoch, err := id.ParseEpoch(text); found && err == nil && bearsMarker(set.Name) {
			h.epoch, h.any = max(h.epoch, epoch), true
		}
	}
}

// bearsMarker tells names of organizations from those below them.
func bearsMarker(name string) bool { return strings.HasPrefix(name, "org-") }

// replacements are the changes that make a record, and nothing else, be at its name and below.
func replacements(r Record) []rrset {
	ttl := int64(r.TTL / time.Second)
	var v4, v6 []record
	for _, a := range normal(r.Addresses) {
		if a.Is4() {
			v4 = append(v4, record{Content: a.String()})
		} else {
			v6 = append(v6, record{Content: a.String()})
		}
	}
	set := func(name, kind string, records []record) rrset {
		if len(records) == 0 {
			return rrset{Name: name + ".", Type: kind, ChangeType: "DELETE"}
		}
		return rrset{Name: name + ".", Type: kind, TTL: ttl, ChangeType: "REPLACE", Records: records}
	}
	var epoch []record
	if r.Epoch > 0 {
		epoch = []record{{Content: `"` + marker + r.Epoch.String() + `"`}}
	}
	var out []rrset
	for _, name := range []string{r.Name, wildcard(r.Name)} {
		out = append(out, set(name, "CNAME", nil), set(name, "A", v4), set(name, "AAAA", v6))
	}
	return append(out, set(r.Name, "TXT", epoch))
}

// removals are the changes that leave nothing at the names that stops or answers a look-up of an address.
func removals(names []string) []rrset {
	var out []rrset
	for _, name := range names {
		for _, kind := range []string{"CNAME", "A", "AAAA"} {
			out = append(out, rrset{Name: name + ".", Type: kind, ChangeType: "DELETE"})
		}
		if bearsMarker(name) {
			out = append(out, rrset{Name: name + ".", Type: "TXT", ChangeType: "DELETE"})
		}
	}
	return out
}
