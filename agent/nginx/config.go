package nginx

import (
	"fmt"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Slot is one gateway of this host, with the largest request body that it takes (0: 64 MiB).
type Slot struct {
	Gateway id.Gateway
	MaxBody int64
}

// Site is what one organization adds to the configuration.
type Site struct {
	Organization id.Organization
	Domains      []string // own host names, beside org-<uuid>.<domain>
	MaxBody      int64    // largest request body; 0: that of the gateways
	Certificate  bool     // <DataDir>/certs/<organization>.pem holds its key and chain
}

// Config is what a host's nginx shall know. Routes are not in it: they need no generation.
type Config struct {
	Slots []Slot
	Sites []Site
}

// Target is where an organization's requests go.
type Target struct {
	Gateway id.Gateway
	Epoch   id.Epoch
}

const (
	defaultMaxBody = 64 << 20
	largestBody    = 1 << 40
	maxDomains     = 64 // of one organization: a bound on what one tenant can make nginx parse
)

// Names of parts, in quarantine, events and status.
func slotPart(g id.Gateway) string      { return "gateway/" + string(g) }
func sitePart(o id.Organization) string { return "site/" + string(o) }

// refusal is a part that is left out, and why, before nginx has seen it.
type refusal struct {
	part, reason string
}

// normalize checks every part by itself and against those before it, sorts, and fills defaults. What
// is wrong comes back as refusals, the rest goes on: one bad part must not block the others. Parts that
// appear twice keep the first.
func normalize(cfg Config, domain string) (Config, []refusal) {
	var out Config
	var refused []refusal
	gateways := map[id.Gateway]bool{}
	for _, s := range cfg.Slots {
		if err := checkSlot(&s); err != nil {
			refused = append(refused, refusal{slotPart(s.Gateway), err.Error()})
			continue
		}
		if !gateways[s.Gateway] {
			gateways[s.Gateway] = true
			out.Slots = append(out.Slots, s)
		}
	}
	slices.SortFunc(out.Slots, func(a, b Slot) int { return strings.Compare(string(a.Gateway), string(b.Gateway)) })

	// In order of organization, so that the loser of a disputed name does not depend on the caller's order.
	sites := slices.Clone(cfg.Sites)
	slices.SortStableFunc(sites, func(a, b Site) int { return strings.Compare(string(a.Organization), string(b.Organization)) })
	owner := map[string]id.Organization{}
	for i, s := range sites {
		if i > 0 && sites[i-1].Organization == s.Organization {
			continue
		}
		s.Domains = slices.Compact(slices.Sorted(slices.Values(s.Domains)))
		if err := checkSite(s, domain, owner); err != nil {
			refused = append(refused, refusal{sitePart(s.Organization), err.Error()})
			continue
		}
		for _, d := range s.Domains {
			owner[d] = s.Organization
		}
		out.Sites = append(out.Sites, s)
	}
	return out, refused
}

func checkSlot(s *Slot) error {
	if _, err := id.ParseGateway(string(s.Gateway)); err != nil {
		return err
	}
	if s.MaxBody < 0 || s.MaxBody > largestBody {
		return fmt.Errorf("cannot limit request bodies of gateway %s to %d bytes: want 0 to %d", s.Gateway, s.MaxBody, int64(largestBody))
	}
	if s.MaxBody == 0 {
		s.MaxBody = defaultMaxBody
	}
	return nil
}

func checkSite(s Site, platform string, owner map[string]id.Organization) error {
	if org, err := id.ParseOrganization(string(s.Organization)); err != nil || org != s.Organization {
		return fmt.Errorf("cannot use %q as an organization id: want a lower-case UUID", s.Organization)
	}
	if s.MaxBody < 0 || s.MaxBody > largestBody {
		return fmt.Errorf("cannot limit request bodies of organization %s to %d bytes: want 0 to %d", s.Organization, s.MaxBody, int64(largestBody))
	}
	if len(s.Domains) > maxDomains {
		return fmt.Errorf("cannot serve %d own domains for organization %s: at most %d", len(s.Domains), s.Organization, maxDomains)
	}
	for _, d := range s.Domains {
		if _, err := id.ParseDomain(d); err != nil {
			return err
		}
		if !strings.Contains(d, ".") || strings.Trim(d, "0123456789.") == "" {
			return fmt.Errorf("cannot use %q as an own domain: want a host name with at least two labels, not an address", d)
		}
		// A name of the platform would take another organization's requests.
		if d == platform || strings.HasSuffix(d, "."+platform) {
			return fmt.Errorf("cannot use %q as an own domain of organization %s: it belongs to the platform's domain %s", d, s.Organization, platform)
		}
		if other, taken := owner[d]; taken {
			return fmt.Errorf("cannot use %q as an own domain of organization %s: organization %s has it", d, s.Organization, other)
		}
	}
	return nil
}
