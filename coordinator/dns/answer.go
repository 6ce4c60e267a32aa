package dns

import (
	"net/netip"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Source is what the embedded server reads of the state. Both methods are called for every query, at the
// same time from many sides.
type Source interface {
	// Addresses returns where an organization is served. ok is false when it is served nowhere: then its
	// name does not exist.
	Addresses(org id.Organization) (addresses []netip.Addr, ok bool)
	// Index is that of the state: it rises with every change. It is the serial number of the zone.
	Index() uint64
}

// What is said of the zone to servers that would copy it. None can: there is no transfer.
const (
	soaRefresh = 60
	soaRetry   = 30
	soaExpire  = 3600
)

// maxUDP is the largest answer by UDP: one that no network on the way has to take apart (DNS flag day
// 2020). Longer ones are cut, and asked for again by TCP.
const maxUDP = 1232

// authority answers queries about one zone. It only reads, so any number of queries may run at once.
type authority struct {
	zone        string // lower-case, with final dot
	hostmaster  string
	nameservers []string                // with final dots
	fixed       map[string][]netip.Addr // names that exist whatever the state says, and those above them
	ttl         uint32
	negative    uint32
	source      Source
}

func newAuthority(cfg Config, domain string, source Source) (*authority, error) {
	a := &authority{
		zone: domain + ".", fixed: map[string][]netip.Addr{}, source: source,
		ttl: uint32(cfg.TTL / time.Second), negative: uint32(cfg.NegativeTTL / time.Second),
	}
	var err error
	if a.hostmaster, err = mailbox(cfg.Hostmaster, domain); err != nil {
		return nil, err
	}
	for _, text := range cfg.Apex {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		a.fixed[a.zone] = append(a.fixed[a.zone], address.Unmap())
	}
	if _, ok := a.fixed[a.zone]; !ok {
		a.fixed[a.zone] = nil
	}
	for _, text := range cfg.Nameservers {
		ns, err := parseNameserver(text, domain)
		if err != nil {
			return nil, err
		}
		name := ns.name + "."
		a.nameservers = append(a.nameservers, name)
		for above := name; strings.HasSuffix(above, "."+a.zone); {
			if _, ok := a.fixed[above]; !ok {
				a.fixed[above] = nil // it exists, because something below it does (RFC 8020)
			}
			_, above, _ = strings.Cut(above, ".")
		}
		for _, address := range ns.addresses {
			a.fixed[name] = append(a.fixed[name], address.Unmap())
		}
	}
	return a, nil
}

// answer makes the whole reply to a query, at most as long as the way back allows.
func (a *authority) answer(query *mdns.Msg, udp bool) *mdns.Msg {
	reply := new(mdns.Msg).SetReply(query)
	reply.Compress = true
	size := mdns.MaxMsgSize
	if udp {
		size = mdns.MinMsgSize
	}
	opt, several := edns(query)
	if opt != nil {
		if udp {
			size = min(max(int(opt.UDPSize()), mdns.MinMsgSize), maxUDP)
		}
		reply.SetEdns0(maxUDP, false)
	}
	switch {
	case several || len(query.Question) != 1:
		reply.Rcode = mdns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		reply.Rcode = mdns.RcodeBadVers
	default:
		a.resolve(reply, query.Question[0])
	}
	reply.Truncate(size)
	return reply
}

// edns finds the OPT record of a query; several are an error (RFC 6891, section 6.1.1).
func edns(query *mdns.Msg) (opt *mdns.OPT, several bool) {
	for _, rr := range query.Extra {
		if found, ok := rr.(*mdns.OPT); ok {
			several = opt != nil
			opt = found
		}
	}
	return opt, several
}

// resolve fills in the answer to one question.
func (a *authority) resolve(reply *mdns.Msg, q mdns.Question) {
	name := strings.ToLower(q.Name)
	if q.Qclass != mdns.ClassINET || !a.holds(name) || q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR {
		reply.Rcode = mdns.RcodeRefused
		return
	}
	reply.Authoritative = true
	addresses, exists := a.lookup(name)
	switch {
	case !exists:
		reply.Rcode = mdns.RcodeNameError
	case q.Qtype == mdns.TypeANY:
		// RFC 8482, section 4.2: one small record instead of all.
		reply.Answer = append(reply.Answer, &mdns.HINFO{Hdr: header(q.Name, mdns.TypeHINFO, a.ttl), Cpu: "RFC8482"})
	case q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeAAAA:
		reply.Answer = a.addressRecords(q.Name, q.Qtype, addresses)
	case name == a.zone && q.Qtype == mdns.TypeSOA:
		reply.Answer = append(reply.Answer, a.soa(q.Name, a.ttl))
	case name == a.zone && q.Qtype == mdns.TypeNS:
		for _, ns := range a.nameservers {
			reply.Answer = append(reply.Answer, &mdns.NS{Hdr: header(q.Name, mdns.TypeNS, a.ttl), Ns: ns})
			for _, kind := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
				reply.Extra = append(a.addressRecords(ns, kind, a.fixed[ns]), reply.Extra...)
			}
		}
	}
	if len(reply.Answer) == 0 {
		// The time for which the answer may be remembered is the lower of the record's two (RFC 2308).
		reply.Ns = append(reply.Ns, a.soa(a.zone, a.negative))
	}
}

// holds reports whether a name, in lower case, is the zone's or below it. A dot behind a backslash is
// part of a label.
func (a *authority) holds(name string) bool {
	rest, found := strings.CutSuffix(name, a.zone)
	return found && (rest == "" || endsLabel(rest))
}

// endsLabel reports whether text ends with a dot that separates labels.
func endsLabel(text string) bool {
	before, found := strings.CutSuffix(text, ".")
	return found && (len(before)-len(strings.TrimRight(before, `\`)))%2 == 0
}

// lookup finds what a name of the zone, in lower case, points to. A name can exist without addresses.
func (a *authority) lookup(name string) (addresses []netip.Addr, exists bool) {
	if addresses, exists = a.fixed[name]; exists {
		return addresses, true
	}
	const label = len("org-") + 36
	rest := name[:len(name)-len(a.zone)-1] // without the dot before the zone
	if len(rest) < label || len(rest) > label && !endsLabel(rest[:len(rest)-label]) {
		return nil, false
	}
	uuid, found := strings.CutPrefix(rest[len(rest)-label:], "org-")
	org, err := id.ParseOrganization(uuid)
	if !found || err != nil {
		return nil, false
	}
	return a.source.Addresses(org)
}

// addressRecords makes the A or AAAA records of a name, written as the caller wrote it.
func (a *authority) addressRecords(name string, kind uint16, addresses []netip.Addr) []mdns.RR {
	var out []mdns.RR
	for _, address := range addresses {
		address = address.Unmap()
		switch {
		case kind == mdns.TypeA && address.Is4():
			out = append(out, &mdns.A{Hdr: header(name, kind, a.ttl), A: address.AsSlice()})
		case kind == mdns.TypeAAAA && address.Is6():
			out = append(out, &mdns.AAAA{Hdr: header(name, kind, a.ttl), AAAA: address.AsSlice()})
		}
	}
	return out
}

// soa is the start of authority. Its serial number is the low half of the index: serial numbers are
// compared in a circle (RFC 1982), which the index goes round slowly enough.
func (a *authority) soa(name string, ttl uint32) *mdns.SOA {
	return &mdns.SOA{
		Hdr: header(name, mdns.TypeSOA, ttl), Ns: a.nameservers[0], Mbox: a.hostmaster, Serial: uint32(a.source.Index()),
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: a.negative,
	}
}

func header(name string, kind uint16, ttl uint32) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: kind, Class: mdns.ClassINET, Ttl: ttl}
}
