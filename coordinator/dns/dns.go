// Package dns makes org-<uuid>.<domain>, and every name below it, point to the host that serves the
// organization. Three providers stand behind one interface and are chosen by the configuration:
//
//   - none: a wildcard record of the domain, made by the operator, does it. Nothing is written.
//   - embedded: an authoritative name server on every coordinator answers from the state (Server).
//   - powerdns: records in a zone of a PowerDNS server, written through its HTTP API.
//
// Whatever keeps records outside of the state can drift from it: Plan compares the two, purely, and Loop
// carries out what Plan says.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Record is where one organization is served. Those who ask for any name below it get the same addresses.
type Record struct {
	Name      string       // id.Hostname: org-<uuid>.<domain>, without a final dot
	Addresses []netip.Addr // of the host, of both families
	TTL       time.Duration
	Epoch     id.Epoch // of the grant that it belongs to; 0 when that is not known
	// Instead is the one higher epoch that Ensure replaces: that of a grant which the state does not have any more,
	// because an older state was restored. 0: none.
	Instead id.Epoch
}

// Provider keeps the records of the organizations. All methods may be called at the same time; none
// outlasts its context. Every error is a fault: dns_failed (KindOf tells more), or superseded.
type Provider interface {
	// Ensure makes the record be there, in place of any other of its name. It succeeds only when it has
	// seen the record where it should be. It does nothing when that is so already, and returns superseded
	// when there is a record of a higher epoch, but for Instead: the caller's grant is over.
	Ensure(ctx context.Context, r Record) error
	// Remove makes the record of a name be gone, with all that Ensure made for it, unless it is of a
	// higher epoch than upTo: then it belongs to a later grant and stays, and Remove returns nil. It
	// returns nil as well when there is no such record. A name below an organization's is removed alone.
	Remove(ctx context.Context, name string, upTo id.Epoch) error
	// List returns every address record of the organizations' names and below, with the names as they
	// are held: what Ensure makes for one organization is listed as that name and as "*." and that name.
	// A provider that keeps nothing returns ErrKeepsNothing.
	List(ctx context.Context) ([]Record, error)
}

// ErrKeepsNothing is what List of a provider returns that holds no records of its own, so that nothing can
// drift.
var ErrKeepsNothing = errors.New("this provider keeps no records")

// Options of a provider.
type Options struct {
	Config Config // validated
	Domain string // organizations are org-<uuid>.<domain>
	Logger hclog.Logger
}

// New makes the provider that the configuration names.
func New(opts Options) (Provider, error) {
	switch opts.Config.Provider {
	case ProviderNone, ProviderEmbedded:
		return nothing{}, nil
	case ProviderPowerDNS:
		return newPowerDNS(opts)
	}
	return nil, fmt.Errorf("cannot use the DNS provider %q: want %s", opts.Config.Provider, strings.Join(providers, ", "))
}

// nothing is the provider where no record has to be written: the operator's wildcard record serves every
// organization, or the embedded server reads each answer from the state.
type nothing struct{}

func (nothing) Ensure(context.Context, Record) error           { return nil }
func (nothing) Remove(context.Context, string, id.Epoch) error { return nil }
func (nothing) List(context.Context) ([]Record, error)         { return nil, ErrKeepsNothing }

// ParseAddresses reads the public address of a host, or several with commas between them. A name is
// refused: DNS could only point to it with a CNAME, which allows no other record beside it and would make
// every answer depend on another zone.
func ParseAddresses(text string) ([]netip.Addr, error) {
	var out []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("cannot point DNS to %q: want an IP address; set the address of that host's agent to one, or use the DNS provider %s with a wildcard record", part, ProviderNone)
		}
		out = append(out, a.Unmap())
	}
	return normal(out), nil
}

// normal sorts addresses and removes duplicates, so that sets can be compared.
func normal(addresses []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, a.Unmap())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// split finds the organization that a name belongs to: org-<uuid>.<domain> or below. Names are lower-case
// and without final dot. ok is false for all other names, which are never touched; they include those
// with a label that begins with "_" (no host has one: they prove who owns a name) and those with escapes.
func split(name, domain string) (owner string, ok bool) {
	rest, found := strings.CutSuffix(name, "."+domain)
	if !found || strings.HasPrefix(rest, "_") || strings.Contains(rest, "._") || strings.Contains(rest, `\`) {
		return "", false
	}
	label := rest[strings.LastIndexByte(rest, '.')+1:]
	uuid, found := strings.CutPrefix(label, "org-")
	if org, err := id.ParseOrganization(uuid); !found || err != nil || string(org) != uuid {
		return "", false
	}
	return label + "." + domain, true
}

// wildcard is the name that stands for all names below another.
func wildcard(name string) string { return "*." + name }
