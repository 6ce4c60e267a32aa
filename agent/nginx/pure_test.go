package nginx

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/shared/id"
)

func testRenderer() renderer {
	o := Options{
		DataDir: "/data/nginx", RunDir: "/run/nginx", SocketDir: "/run/gw", Domain: domain, Workers: 2, CertificateFile: "/etc/cert.pem",
		Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[::]:80")}, ListenTLS: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}, AgentSocket: "/run/agent.sock",
	}
	return renderer{o, layout{data: o.DataDir, run: o.RunDir}}
}

// directive is one parsed directive of nginx.
type directive struct {
	words []string
	block []directive
}

// parseConf is a small parser of nginx's language, independent of the templates.
func parseConf(b []byte) ([]directive, error) {
	rest := string(b)
	out, rest, err := parseBlock(rest, 0)
	if err == nil && strings.TrimSpace(rest) != "" {
		err = fmt.Errorf("left over: %.40q", rest)
	}
	return out, err
}

func parseBlock(s string, depth int) (out []directive, rest string, err error) {
	var words []string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		switch {
		case s == "":
			if len(words) > 0 || depth > 0 {
				return nil, "", errors.New("unexpected end")
			}
			return out, "", nil
		case s[0] == '#':
			_, s, _ = strings.Cut(s, "\n")
		case s[0] == ';':
			if len(words) == 0 {
				return nil, "", errors.New("unexpected ;")
			}
			out, words, s = append(out, directive{words: words}), nil, s[1:]
		case s[0] == '{':
			block, tail, err := parseBlock(s[1:], depth+1)
			if err != nil || len(words) == 0 {
				return nil, "", errors.Join(err, errors.New("in block"))
			}
			out, words, s = append(out, directive{words, block}), nil, tail
		case s[0] == '}':
			if depth == 0 || len(words) > 0 {
				return nil, "", errors.New("unexpected }")
			}
			return out, s[1:], nil
		case s[0] == '"' || s[0] == '\'':
			end := 1
			for end < len(s) && s[end] != s[0] {
				if s[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(s) {
				return nil, "", errors.New("open quote")
			}
			words, s = append(words, s[1:end]), s[end+1:]
		default:
			end := strings.IndexAny(s, " \t\r\n;{}\"")
			if end <= 0 {
				return nil, "", fmt.Errorf("bad word at %.20q", s)
			}
			words, s = append(words, s[:end]), s[end:]
		}
	}
}

// read recovers the configuration from rendered files, and refuses directives that no template has.
func read(t tree) (Config, error) {
	var cfg Config
	limits, common := map[string]int64{}, int64(0)
	for _, name := range t.names() { // http.conf comes before slots.conf
		ds, err := parseConf(t[name])
		if err != nil {
			return cfg, fmt.Errorf("%s: %w", name, err)
		}
		for _, d := range ds {
			if err := closed(d); err != nil {
				return cfg, fmt.Errorf("%s: %w", name, err)
			}
			switch {
			case name == "http.conf" && d.words[0] == "server":
				for _, x := range d.block {
					if x.words[0] == "client_max_body_size" {
						if _, err := fmt.Sscan(x.words[1], &common); err != nil {
							return cfg, err
						}
					}
				}
			case name == "slots.conf" && d.words[0] == "upstream":
				// The gateway is the one whose socket it is, and links to it must lead here.
				gateway := filepath.Base(filepath.Dir(d.block[0].words[1]))
				if target, ok := parseLink(d.words[1] + ".1"); !ok || string(target.Gateway) != gateway {
					return cfg, fmt.Errorf("gateway %s has the upstream %q, where no link to it leads", gateway, d.words[1])
				}
				cfg.Slots = append(cfg.Slots, Slot{Gateway: id.Gateway(gateway)})
			case name == "slots.conf":
				for _, m := range d.block {
					var n int64
					if _, err := fmt.Sscan(m.words[1], &n); err != nil {
						return cfg, err
					}
					limits[m.words[0]] = n
				}
			case strings.HasPrefix(name, "sites/"):
				cfg.Sites = append(cfg.Sites, readSite(d))
			}
		}
	}
	for i := range cfg.Slots {
		cfg.Slots[i].MaxBody = common
		if n, own := limits[string(cfg.Slots[i].Gateway)]; own {
			cfg.Slots[i].MaxBody = n
		}
	}
	return cfg, nil
}

func readSite(d directive) Site {
	var s Site
	for _, x := range d.block {
		switch x.words[0] {
		case "root":
			s.Organization = id.Organization(filepath.Base(x.words[1]))
		case "server_name":
			s.Domains = append(s.Domains, x.words[2:]...)
		case "ssl_certificate":
			s.Certificate = true
		case "location":
			s.MaxBody = -1 // has a limit of its own, see below
		}
	}
	for _, x := range d.block {
		if x.words[0] == "client_max_body_size" && s.MaxBody == -1 {
			_, _ = fmt.Sscan(x.words[1], &s.MaxBody)
		}
	}
	return s
}

// closed lists every directive that the renderer may write in a part that comes from a tenant.
func closed(d directive) error {
	known := "absolute_redirect access_log add_header client_body_temp_path client_max_body_size default default_type error_log error_page fastcgi_temp_path geo if " +
		"include internal keepalive keepalive_requests keepalive_timeout large_client_header_buffers listen location log_format map map_hash_bucket_size " +
		"map_hash_max_size proxy_buffer_size proxy_connect_timeout proxy_hide_header proxy_http_version proxy_ignore_headers proxy_max_temp_file_size proxy_next_upstream " +
		"proxy_headers_hash_bucket_size proxy_pass proxy_read_timeout proxy_send_timeout proxy_set_header proxy_temp_path real_ip_header real_ip_recursive request_pool_size return root scgi_temp_path server set " +
		"server_name server_names_hash_bucket_size server_names_hash_max_size server_tokens set_real_ip_from ssl_certificate ssl_certificate_key ssl_protocols " +
		"ssl_session_cache ssl_session_timeout try_files upstream uwsgi_temp_path variables_hash_bucket_size"
	if !slices.Contains(strings.Fields(known), d.words[0]) {
		return fmt.Errorf("unknown directive %q", d.words[0])
	}
	if d.words[0] == "map" || d.words[0] == "geo" || d.words[0] == "upstream" {
		return nil // their lines are no directives
	}
	for _, x := range d.block {
		if err := closed(x); err != nil {
			return err
		}
	}
	return nil
}

// checkRoundTrip is the property: whatever is asked for, what is rendered reads back as exactly what was
// accepted, and a tenant's text never becomes a directive.
func checkRoundTrip(t interface{ Fatalf(string, ...any) }, cfg Config) {
	r := testRenderer()
	want, refused := normalize(cfg, domain)
	files := r.render(42, want)
	got, err := read(files)
	if err != nil {
		t.Fatalf("%v", err)
	}
	empty := func(c Config) Config {
		for i := range c.Sites {
			if len(c.Sites[i].Domains) == 0 {
				c.Sites[i].Domains = nil
			}
		}
		return c
	}
	if !reflect.DeepEqual(empty(got), empty(want)) {
		t.Fatalf("rendered and read back: %+v\nwant %+v\nrefused %v", got, want, refused)
	}
	if back := parseSlots(files); !slices.Equal(back, want.Slots) {
		t.Fatalf("slots read back %v, want %v", back, want.Slots)
	}
	m, err := decodeManifest(manifestOf(files, r.digest(want)).encode())
	if err != nil || len(m.files) != len(files) {
		t.Fatalf("manifest: %v", err)
	}
	again, err := read(r.renumber(files, 42, 43))
	if err != nil || !reflect.DeepEqual(empty(again), empty(want)) || strings.Contains(string(files["http.conf"]), "000043") {
		t.Fatalf("renumbered: %+v %v", again, err)
	}
}

func TestRenderedReadsBack(t *testing.T) {
	nasty := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"a.test", "b.a.test", "a.test; }", "x\ny.test", "$host.test", "~^.*$", "_", "\"", "a.test\tb.test", "xn--a.test", "A.test", "1.2.3.4", "a..test",
		"*.test", ".test", "org-x." + domain, domain, "#", "\\", "{", "a.test\x00", "\u2028.test", "a.test.", "-a.test",
	}))
	rapid.Check(t, func(t *rapid.T) {
		var cfg Config
		for range rapid.IntRange(0, 4).Draw(t, "slots") {
			g := id.Gateway(rapid.OneOf(nasty, rapid.StringMatching(`gw-[a-z2-7]{10}`)).Draw(t, "gateway"))
			cfg.Slots = append(cfg.Slots, Slot{g, rapid.Int64Range(-2, 1<<41).Draw(t, "body")})
		}
		for range rapid.IntRange(0, 4).Draw(t, "sites") {
			org := id.Organization(rapid.OneOf(nasty, rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)).Draw(t, "organization"))
			cfg.Sites = append(cfg.Sites, Site{org, rapid.SliceOfN(nasty, 0, 3).Draw(t, "domains"), rapid.Int64Range(-1, 5000).Draw(t, "body"), rapid.Bool().Draw(t, "certificate")})
		}
		checkRoundTrip(t, cfg)
	})
}

func FuzzNamesThatReachATemplate(f *testing.F) {
	f.Add("gw-aaaaaaaaaa", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "shop.own.test", int64(5))
	f.Add("gw-aaaaaaaaaa; }", "3f2504e0-4f89-41d3-9a0c-0305e82c3301\n}", "a.test; return 200", int64(-5))
	f.Add("gw-aaaaaaaaa$", "../../../../../../../../etc/passwd..", "~^.+\\.test$", int64(1<<62))
	f.Fuzz(func(t *testing.T, gateway, org, name string, body int64) {
		checkRoundTrip(t, Config{
			Slots: []Slot{{id.Gateway(gateway), body}},
			Sites: []Site{{id.Organization(org), []string{name, name}, body, true}},
		})
	})
}

func FuzzJournal(f *testing.F) {
	f.Add(journal{Live: 3, Candidate: 4, Last: 4, Rejected: map[string]string{"a": "b"}}.encode())
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if j, err := decodeJournal(b); err == nil && string(j.encode()) != string(b) {
			t.Fatalf("%q is read as %+v", b, j)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add(manifestOf(tree{"http.conf": []byte("x"), "sites/a.conf": nil}, strings.Repeat("0", 64)).encode())
	f.Add([]byte("x  y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeManifest(b); err == nil && string(m.encode()) != string(b) {
			t.Fatalf("%q is read as %+v", b, m)
		}
	})
}

func FuzzPointerAndLinks(f *testing.F) {
	for _, s := range []string{"include generations/000042/http.conf;\n", "include generations/42/http.conf;\n", "include /etc/nginx.conf;\n", "gw-aaaaaaaaaa.7", "gw-aaaaaaaaaa.07", "..", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := parsePointer([]byte(s)); ok && string(pointerText(n)) != s {
			t.Fatalf("the pointer %q is read as %d", s, n)
		}
		if target, ok := parseLink(s); ok && link(target) != s {
			t.Fatalf("the link %q is read as %+v", s, target)
		}
	})
}

// Every flipped bit of journal and manifest is noticed.
func TestFlippedBitsAreNoticed(t *testing.T) {
	j := journal{Live: 3, Candidate: 4, Last: 9, RollingBack: true}
	if got, err := decodeJournal(j.encode()); err != nil || got.Live != 3 || got.Candidate != 4 || got.Last != 9 || !got.RollingBack {
		t.Errorf("%+v %v", got, err)
	}
	for name, b := range map[string][]byte{
		"journal":  j.encode(),
		"manifest": manifestOf(tree{"http.conf": []byte("x")}, strings.Repeat("a", 64)).encode(),
	} {
		for i := range len(b) * 8 {
			flipped := slices.Clone(b)
			flipped[i/8] ^= 1 << (i % 8)
			_, errJ := decodeJournal(flipped)
			_, errM := decodeManifest(flipped)
			if errJ == nil || errM == nil {
				t.Errorf("%s with bit %d flipped is accepted", name, i)
			}
		}
		for n := range b {
			if _, err := decodeJournal(b[:n]); err == nil {
				t.Errorf("%s cut to %d bytes is accepted", name, n)
			}
		}
	}
	contradiction, err := json.Marshal(journal{Format: 1, Live: 5, Last: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeJournal(contradiction); err == nil {
		t.Error("a journal without checksum is accepted")
	}
	if _, err := decodeJournal(journal{Live: 5, Last: 3}.encode()); err == nil {
		t.Error("a journal whose numbers contradict each other is accepted")
	}
}

func TestNormalize(t *testing.T) {
	a, b := id.Organization("00000000-0000-4000-8000-00000000000a"), id.Organization("00000000-0000-4000-8000-00000000000b")
	for _, c := range []struct {
		name    string
		site    Site
		refused string
	}{
		{"fine", Site{Organization: b, Domains: []string{"b.test", "x.b.test"}}, ""},
		{"another's domain", Site{Organization: b, Domains: []string{"a.test"}}, "organization " + string(a) + " has it"},
		{"platform", Site{Organization: b, Domains: []string{domain}}, "platform's domain"},
		{"below the platform", Site{Organization: b, Domains: []string{"org-" + string(a) + "." + domain}}, "platform's domain"},
		{"address", Site{Organization: b, Domains: []string{"192.0.2.1"}}, "not an address"},
		{"one label", Site{Organization: b, Domains: []string{"localhost"}}, "two labels"},
		{"upper case", Site{Organization: b, Domains: []string{"B.test"}}, "without a port"},
		{"injection", Site{Organization: b, Domains: []string{"b.test; }"}}, "cannot use"},
		{"body", Site{Organization: b, MaxBody: -1}, "cannot limit"},
		{"too many", Site{Organization: b, Domains: manyDomains()}, "at most 64"},
	} {
		got, refused := normalize(Config{Sites: []Site{c.site, {Organization: a, Domains: []string{"a.test"}}}}, domain)
		if c.refused == "" && (len(refused) != 0 || len(got.Sites) != 2) {
			t.Errorf("%s: refused %v", c.name, refused)
		}
		if c.refused != "" && (len(refused) != 1 || refused[0].part != sitePart(b) || !strings.Contains(refused[0].reason, c.refused) || len(got.Sites) != 1) {
			t.Errorf("%s: %+v refused %v", c.name, got, refused)
		}
	}
}

func manyDomains() (out []string) {
	for i := range 65 {
		out = append(out, fmt.Sprintf("n%d.b.test", i))
	}
	return out
}

func TestBlame(t *testing.T) {
	r := testRenderer()
	org := id.Organization("00000000-0000-4000-8000-00000000000a")
	cfg, _ := normalize(Config{Slots: []Slot{{"gw-aaaaaaaaaa", 1}, {"gw-bbbbbbbbbb", 2}}, Sites: []Site{{Organization: org, Certificate: true}}}, domain)
	files := r.render(5, cfg)
	for message, want := range map[string]string{
		`[emerg] unknown directive "x" in /data/nginx/generations/000005/sites/` + string(org) + `.conf:4`: sitePart(org),
		`[emerg] host not found in /data/nginx/generations/000005/slots.conf:2`:                            "gateway/gw-bbbbbbbbbb",
		`[emerg] invalid parameter in /data/nginx/generations/000005/slots.conf:5`:                         "gateway/gw-aaaaaaaaaa",
		`[emerg] something in /data/nginx/generations/000005/slots.conf:3`:                                 "",
		`[emerg] something in /data/nginx/generations/000005/slots.conf:99`:                                "",
		`[emerg] something in /data/nginx/generations/000005/http.conf:3`:                                  "",
		`[emerg] cannot load certificate "/data/nginx/certs/` + string(org) + `.pem"`:                      sitePart(org),
		`[emerg] no reason`: "",
	} {
		if got := r.blame(message, files, cfg); got != want {
			t.Errorf("%s: %q, want %q", message, got, want)
		}
	}
}

func TestSmallParsers(t *testing.T) {
	for text, want := range map[string]bool{
		"gw-aaaaaaaaaa.7": true, "gw-aaaaaaaaaa.07": false, "gw-aaaaaaaaaa.0": false, "gw-aaaaaaaaaa": false, "gw-aaaaaaaaaa.": false,
		"/etc": false, "gw-aaaaaaaaaa.7/x": false, "gw-aaaaaaaaaa.7.7": false, "": false, "...7": false, "../gw-aaaaaaaaaa.7": false,
	} {
		target, ok := parseLink(text)
		if ok != want || ok && link(target) != text {
			t.Errorf("parseLink(%q) = %v, %t", text, target, ok)
		}
	}
	for text, want := range map[string]bool{
		string(pointerText(42)): true, string(pointerText(1234567)): true, "include generations/42/http.conf;\n": false, "": false,
		"include generations/000042/http.conf;\ninclude x;\n": false, "include generations/000000/http.conf;\n": false,
	} {
		if n, ok := parsePointer([]byte(text)); ok != want || ok && string(pointerText(n)) != text {
			t.Errorf("parsePointer(%q) = %d, %t", text, n, ok)
		}
	}
	addr := netip.MustParseAddrPort
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"[::]:80", "0.0.0.0:80", false}, // nginx binds [::] to IPv6 only
		{"[::]:80", "[::1]:80", true},
	} {
		if got := clash(addr(c.a), addr(c.b)); got != c.want {
			t.Errorf("clash(%s, %s) = %t", c.a, c.b, got)
		}
	}
	for lines, want := range map[string]string{
		"2026/01/01 00:00:00 [alert] 5#5: setrlimit(RLIMIT_NOFILE, 65536) failed (1: Operation not permitted)":            "",
		"2026/01/01 00:00:00 [emerg] 5#5: bind() to 0.0.0.0:80 failed (98: Address already in use)":                       "",
		"x [emerg] 5#5: bind() to 0.0.0.0:80 failed (98: Address already in use)\nx [emerg] 5#5: still could not bind()":  "nginx could not bind: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)",
		"2026/01/01 00:00:00 [alert] 5#5: worker process 7 exited with fatal code 2 and cannot be respawned":              "[alert] worker process 7 exited with fatal code 2 and cannot be respawned",
		"2026/01/01 00:00:00 [emerg] 5#5: open() \"/x\" failed (2: No such file or directory) in /data/nginx/http.conf:1": "[emerg] open() \"/x\" failed (2: No such file or directory) in /data/nginx/http.conf:1",
	} {
		if got, _ := verdict(strings.Split(lines, "\n")); got != want {
			t.Errorf("verdict(%q) = %q, want %q", lines, got, want)
		}
	}
}
