package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	mdns "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzConfig: what is taken as the configuration of the name server makes one that can answer for its zone, and each of
// its lines is read as the same when it is written again.
func FuzzConfig(f *testing.F) {
	f.Add("ns1."+testDomain+" 192.0.2.53 2001:db8::53", "dns.admin@example.org", "192.0.2.80", "0.0.0.0:53")
	f.Add("NS.example.net.", "", "::ffff:192.0.2.1", ":53")
	f.Add("ns."+testDomain+" fe80::1%eth0", "a..b@x", "fe80::1%0", "[::1%1]:53")
	f.Add(`a\.b.`+testDomain+" 1.2.3.4", `a\b@c.d`, "1.2.3.4 ", "1:2:3")
	f.Add("ns.example.net", strings.Repeat("a", 63)+"@"+strings.Repeat(strings.Repeat("b", 49)+".", 5)+"cc", "", "127.0.0.1:0")
	f.Fuzz(func(t *testing.T, ns, mail, apex, listen string) {
		cfg := embedded()
		cfg.Nameservers, cfg.Hostmaster, cfg.Listen = []string{ns}, mail, listen
		if apex != "" {
			cfg.Apex = []string{apex}
		}
		if err := cfg.Validate("dns", testDomain); err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.Contains(line, `key "dns.`) {
					t.Fatalf("refused without the name of the key: %v", err)
				}
			}
			return
		}
		a, err := newAuthority(cfg, testDomain, testBook())
		if err != nil {
			t.Fatalf("validated, and then %v", err)
		}
		for _, name := range []string{testDomain + ".", a.nameservers[0], "none." + testDomain + "."} {
			for _, kind := range []uint16{mdns.TypeSOA, mdns.TypeNS, mdns.TypeA, mdns.TypeAAAA} {
				reply := a.answer(new(mdns.Msg).SetQuestion(name, kind), false)
				packed, err := reply.Pack()
				if err != nil {
					t.Fatalf("the answer about %s cannot be sent: %v", name, err)
				}
				if err := new(mdns.Msg).Unpack(packed); err != nil {
					t.Fatalf("the answer about %s cannot be read: %v", name, err)
				}
			}
		}
		one, err := parseNameserver(ns, testDomain)
		if err != nil {
			t.Fatal(err)
		}
		again := one.name
		for _, address := range one.addresses {
			again += " " + address.String()
		}
		two, err := parseNameserver(again, testDomain)
		if err != nil || fmt.Sprint(one) != fmt.Sprint(two) {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", ns, one, two, err)
		}
	})
}

// FuzzParseAddresses: what is taken as the addresses of a host is written and read as the same.
func FuzzParseAddresses(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "2001:db8::1, 192.0.2.1", "::ffff:192.0.2.1,192.0.2.1", "fe80::1%eth0", ",", "h.example.org"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseAddresses(text)
		if err != nil {
			return
		}
		var texts []string
		for _, a := range got {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("%q is read as %v", text, got)
			}
			texts = append(texts, a.String())
		}
		again, err := ParseAddresses(strings.Join(texts, ","))
		if err != nil || len(got) == 0 || fmt.Sprint(again) != fmt.Sprint(got) {
			t.Fatalf("%q is read as %v, and that as %v, %v", text, got, again, err)
		}
	})
}

// FuzzReadZone: whatever answers in the place of PowerDNS, the reading ends, what it takes is of the organizations of this
// domain, and what a change of this program made is read back as it is.
func FuzzReadZone(f *testing.F) {
	org := "org-" + string(uuidA) + "." + testDomain
	zone := `{"kind":"Native","rrsets":[{"name":"` + org + `.","type":"A","ttl":5,"records":[{"content":"192.0.2.1","disabled":false}]},` +
		`{"name":"` + org + `.","type":"TXT","ttl":5,"records":[{"content":"\"` + marker + `17\""}]}],"x":[[1]]}`
	for _, s := range []string{
		zone, zone[:len(zone)-1], `{}`, `{"rrsets":null}`, `[{"rrsets":[]}]`, `{"rrsets":[{"ttl":9223372036854775807,"type":"A","name":"` + org + `","records":[{"content":"::1%x"}]}]}`,
		`{"rrsets":[` + strings.Repeat("[", 20000), `{"a":` + strings.Repeat("[", 20000), `{"rrsets":[],"rrsets":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var sets []rrset
		err := readZone(json.NewDecoder(bytes.NewReader(data)), func(set rrset) { sets = append(sets, set) })
		if err != nil && err.Error() == "" {
			t.Fatal("refused without a word")
		}
		if first, _, _ := bytes.Cut(data, []byte{0}); err == nil && !bytes.Contains(first, []byte("rrsets")) && !bytes.Contains(first, []byte(`\u`)) {
			t.Fatalf("%q is taken for a zone", data)
		}
		for name, h := range gather(sets) {
			owner, ours := split(name, testDomain)
			if !ours {
				continue
			}
			org, err := id.ParseOrganization(strings.TrimSuffix(strings.TrimPrefix(owner, "org-"), "."+testDomain))
			if err != nil || !strings.HasSuffix(name, id.Hostname(org, testDomain)) {
				t.Fatalf("%q is taken for a name of %q", name, owner)
			}
			for _, a := range h.addresses {
				if !a.IsValid() && !h.foreign {
					t.Fatalf("%q has no address and counts as ours: %+v", name, h)
				}
			}
		}
	})
}

// FuzzReason: whatever PowerDNS says of an error, or what stands in its place, a line of it gets into the log, and not the
// key; and whatever stands in the file of the key, it is refused or can be sent.
func FuzzReason(f *testing.F) {
	f.Add([]byte(`{"error":"Domain 'example.org.' does not exist"}`), []byte("s3cret-of-powerdns\n"))
	f.Add([]byte("X-API-Key: s3cret\n\x1b[2J\u2028\u202e"), []byte(" s3cret "))
	f.Add([]byte("a\nb and \xff"), []byte("a b"))
	f.Add([]byte(`{"error":"s3c\u0072et"}`), []byte("s3cret"))
	f.Add([]byte(strings.Repeat("é", 4096)), []byte("\x7f"))
	f.Add([]byte("x"), []byte("two\nlines"))
	f.Add([]byte("x"), []byte("clé"))
	f.Add([]byte(`[{"error":1}]`), []byte(strings.Repeat("k", maxKey)))
	f.Fuzz(func(t *testing.T, body, file []byte) {
		secret, err := parseKey(file)
		if err != nil {
			if !strings.Contains(err.Error(), "one line of printable characters") {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		key := secret.Reveal()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://192.0.2.1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", key)
		var wire bytes.Buffer
		if err := req.Write(&wire); err != nil || !strings.Contains(wire.String(), "\r\nX-Api-Key: "+key+"\r\n") {
			t.Fatalf("%q is sent as %q, %v", file, wire.String(), err)
		}
		said := reasonOf(bytes.NewReader(body), key)
		if len(said) > maxReason || !utf8.ValidString(said) || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("the log has %q", said)
		}
		if redacted := "[redacted]"; strings.Contains(said, key) && !strings.ContainsAny(key, "[]") && !strings.Contains(redacted, key) {
			t.Fatalf("the log has %q with the key %q", said, key)
		}
	})
}
