package nginx

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/demiurge-platform/demiurge/shared/id"
)

//go:embed templates/*.conf
var templateFiles embed.FS

// templates are parsed once; they see parsed types and checked paths only.
var templates = template.Must(template.New("").ParseFS(templateFiles, "templates/*.conf"))

// tree is the content of one generation directory by relative name.
type tree map[string][]byte

// renderer turns a configuration into the files of a generation. It is the only code that writes nginx
// text, and it can write no directive that is not in its templates or in addSlots.
type renderer struct {
	opts Options
	l    layout
}

// view is what the templates see.
type view struct {
	Dir, Temp, RoutesPattern, SocketDir        string
	AccessLog, ErrorLog                        string
	Domain, DomainPattern, Agent, Certificate  string
	Access, Pass                               string
	Listen, Proxies, Own, AgentPaths, Stripped []string
	SlotUpstreams, SlotLimits                  string
	Limits                                     []int64
	MaxBody, Smallest                          int64
	NamesHash, MapHash                         int
}

// agentPaths are the locations that the agent answers on organizations' names.
var agentPaths = []string{
	"/oauth/", "= /.well-known/oauth-authorization-server",
	"= /permissions", "/permissions/", "= /roles", "/roles/", "= /containers", "/containers/",
}

// strippedHeaders are those in which programs behind a proxy are told who comes: none of a client's own reaches a
// user container. What the templates set themselves is not among them.
var strippedHeaders = []string{
	"X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Access-Token", "X-Auth-Request-User", "X-Auth-Request-Email",
	"X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username", "X-Auth-Request-Access-Token", "Remote-User", "Remote-Name",
	"Remote-Email", "Remote-Groups", "X-Remote-User", "X-Remote-Group", "X-Authenticated-User", "X-Webauth-User", "Forwarded",
	"X-Original-Url", "X-Rewrite-Url", "X-Demiurge-Gateway", "X-Demiurge-Epoch", "X-Demiurge-Label", "X-Demiurge-Method", "X-Demiurge-Uri",
	"X-Demiurge-Host", "X-Demiurge-Upgrade", "X-Demiurge-Upstream", "X-Demiurge-Cookie", "X-Demiurge-Authorization",
}

// render writes generation n of a normalized configuration.
func (r renderer) render(n uint64, cfg Config) tree {
	return r.renderTo("generations/"+number(n), n, cfg)
}

// renderTo is render for files that will lie in dir, relative to nginx.conf.
func (r renderer) renderTo(dir string, n uint64, cfg Config) tree {
	v := r.view(dir, cfg)
	out := tree{
		"http.conf":      execute("http.conf", v),
		"locations.conf": execute("locations.conf", v),
		"gateway.conf":   execute("gateway.conf", v),
		"told.conf":      execute("told.conf", v),
		"slots.conf":     execute("slots.conf", v),
		"fence.conf":     execute("fence.conf", map[string]string{"Socket": r.l.socket(n), "Number": number(n)}),
	}
	if v.Access != "" {
		out["containers.conf"] = execute("containers.conf", v)
		out["asking.conf"] = execute("asking.conf", v)
		out["reached.conf"] = execute("reached.conf", v)
	}
	for _, s := range cfg.Sites {
		maxBody, certificate := v.MaxBody, ""
		if s.MaxBody > 0 {
			maxBody = s.MaxBody
		}
		if s.Certificate && len(r.opts.ListenTLS) > 0 {
			certificate = r.l.certificate(s.Organization)
		}
		out["sites/"+string(s.Organization)+".conf"] = execute("site.conf", struct {
			Site                     Site
			Listen                   []string
			Domain, Certificate, Dir string
			AccessLog, ErrorLog      string
			MaxBody                  int64
		}{s, v.Listen, v.Domain, certificate, v.Dir, v.AccessLog, v.ErrorLog, maxBody})
	}
	return out
}

func (r renderer) view(dir string, cfg Config) view {
	v := view{
		Dir: dir, Temp: r.l.temp(), AccessLog: r.l.accessLog(), ErrorLog: r.l.errorLog(),
		RoutesPattern: regexp.QuoteMeta(r.l.routes()), SocketDir: r.opts.SocketDir, Domain: r.opts.Domain,
		DomainPattern: regexp.QuoteMeta(r.opts.Domain), Agent: r.opts.AgentSocket, AgentPaths: agentPaths, Access: r.opts.AccessSocket, Pass: r.opts.PassSocket, Stripped: strippedHeaders,
		MaxBody: defaultMaxBody, Smallest: defaultMaxBody,
		NamesHash: hashSize(2 * len(cfg.Sites)), MapHash: hashSize(len(cfg.Slots)),
	}
	v.addSlots(cfg.Slots)
	for _, a := range r.opts.Listen {
		v.Listen = append(v.Listen, a.String())
	}
	for _, a := range r.opts.ListenTLS {
		v.Listen = append(v.Listen, a.String()+" ssl http2")
	}
	if len(r.opts.ListenTLS) > 0 {
		v.Certificate = r.opts.CertificateFile
	}
	for _, a := range slices.Concat(r.opts.Listen, r.opts.ListenTLS) {
		own := a.Addr().Unmap()
		if s := netip.PrefixFrom(own, own.BitLen()).String(); !own.IsUnspecified() && !own.IsLoopback() && !slices.Contains(v.Own, s) {
			v.Own = append(v.Own, s)
		}
	}
	for _, p := range r.opts.TrustedProxies {
		v.Proxies = append(v.Proxies, p.Masked().String())
	}
	if limits := bodyLimits(cfg.Slots); len(limits) > 0 {
		v.Smallest, v.MaxBody = limits[0], limits[len(limits)-1]
		if len(limits) > 1 {
			v.Limits = limits
		}
	}
	return v
}

// Connections that each worker keeps open to a gateway. nginx makes room for all of them when it reads the
// configuration, whether they are used or not.
const (
	keptConnections     = 32
	keptConnectionsMany = 16 // with more gateways than manyGateways
	manyGateways        = 500
)

// addSlots writes the lines of the gateways, of which there can be thousands: a template takes ten times
// as long for them.
func (v *view) addSlots(slots []Slot) {
	connections := keptConnections
	if len(slots) > manyGateways {
		connections = keptConnectionsMany
	}
	var upstreams, limits strings.Builder
	for _, s := range slots {
		gateway := string(s.Gateway)
		upstreams.WriteString("upstream " + upstreamName(s.Gateway) + " { server unix:" + v.SocketDir + "/" + gateway +
			"/http.sock; keepalive " + strconv.Itoa(connections) + "; }\n")
		limits.WriteString("    " + gateway + " " + strconv.FormatInt(s.MaxBody, 10) + ";\n")
	}
	v.SlotUpstreams, v.SlotLimits = upstreams.String(), limits.String()
}

// bodyLimits are the distinct limits of the gateways in rising order.
func bodyLimits(slots []Slot) []int64 {
	var out []int64
	for _, s := range slots {
		out = append(out, s.MaxBody)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// hashSize leaves nginx's hash tables half empty at most, so that names of equal length never make it
// refuse the configuration.
func hashSize(n int) int {
	size := 2048
	for size < 4*n {
		size *= 2
	}
	return size
}

// execute runs a template on values whose types cannot fail it.
func execute(name string, data any) []byte {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		panic(fmt.Sprintf("template %s does not fit its data: %v", name, err)) // a bug, found by any test
	}
	return b.Bytes()
}

// mainConf is the static file that nginx is started with. include is the pointer, or for a test the
// generation itself.
func (r renderer) mainConf(pid, errorLog, include string, descriptors uint64) []byte {
	account := ""
	if os.Getuid() == 0 {
		// Workers must be able to read our 0700 directories, so they stay the user who made them.
		if u, err := user.Current(); err == nil {
			account = u.Username
		}
	}
	return execute("nginx.conf", struct {
		User, PID, ErrorLog, Routes, Include string
		Workers, Connections, Descriptors    uint64
	}{account, pid, errorLog, r.l.routes(), include, uint64(r.opts.Workers), max(512, descriptors/2), descriptors})
}

// digest identifies a configuration whatever its number: the rendered text of generation 0 and the
// content of the certificate that nginx would load with it.
func (r renderer) digest(cfg Config) string {
	h := sha256.New()
	files := r.render(0, cfg)
	for _, name := range files.names() {
		fmt.Fprintf(h, "%s %d\n", name, len(files[name]))
		h.Write(files[name])
	}
	certificates := []string{}
	if len(r.opts.ListenTLS) > 0 {
		certificates = append(certificates, r.opts.CertificateFile)
		for _, s := range cfg.Sites {
			if s.Certificate {
				certificates = append(certificates, r.l.certificate(s.Organization))
			}
		}
	}
	for _, path := range certificates {
		b, err := os.ReadFile(path) // a missing one is nginx's to refuse, with its words
		sum := sha256.Sum256(b)
		fmt.Fprintf(h, "%s %t %x\n", path, err == nil, sum)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (t tree) names() []string {
	var out []string
	for name := range t {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// renumber makes the files of one generation those of another, as a rollback needs: the text of what
// was proven, whatever this program would render today.
func (r renderer) renumber(t tree, from, to uint64) tree {
	out := tree{}
	for name, b := range t {
		if name == "fence.conf" {
			b = execute("fence.conf", map[string]string{"Socket": r.l.socket(to), "Number": number(to)})
		} else {
			b = bytes.ReplaceAll(b, []byte("include generations/"+number(from)+"/"), []byte("include generations/"+number(to)+"/"))
		}
		out[name] = b
	}
	return out
}

var (
	slotLine      = regexp.MustCompile(`(?m)^upstream (gw-[a-z2-7]{10})-* \{ `)
	slotLimitLine = regexp.MustCompile(`(?m)^    (gw-[a-z2-7]{10}) ([0-9]{1,13});$`)
	limitLine     = regexp.MustCompile(`(?m)^    client_max_body_size ([0-9]{1,13});$`)
)

// parseSlots reads the gateways back from the files of a generation. Where all have one limit it stands in
// the server alone.
func parseSlots(files tree) []Slot {
	limits := map[string]int64{}
	limit := func(digits []byte) int64 {
		n, err := strconv.ParseInt(string(digits), 10, 64)
		if err != nil {
			return 0 // never: the patterns bound it
		}
		return n
	}
	for _, m := range slotLimitLine.FindAllSubmatch(files["slots.conf"], -1) {
		limits[string(m[1])] = limit(m[2])
	}
	var common int64
	if m := limitLine.FindSubmatch(files["http.conf"]); m != nil {
		common = limit(m[1])
	}
	var out []Slot
	for _, m := range slotLine.FindAllSubmatch(files["slots.conf"], -1) {
		s := Slot{Gateway: id.Gateway(m[1]), MaxBody: common}
		if n, own := limits[string(m[1])]; own {
			s.MaxBody = n
		}
		out = append(out, s)
	}
	return out
}

var (
	blamedFile = regexp.MustCompile(` in (\S+):([0-9]+)`)
	gatewayID  = regexp.MustCompile(`gw-[a-z2-7]{10}`)
	siteFile   = regexp.MustCompile(`/sites/([0-9a-f-]{36})\.conf$`)
)

// blame finds the part that a message of nginx points to by file and line, or by the path of a
// certificate. The empty string: the message names none.
func (r renderer) blame(message string, files tree, cfg Config) string {
	for _, m := range blamedFile.FindAllStringSubmatch(message, -1) {
		if s := siteFile.FindStringSubmatch(m[1]); s != nil {
			// One that is not there could be left out again and again.
			if slices.ContainsFunc(cfg.Sites, func(x Site) bool { return string(x.Organization) == s[1] }) {
				return sitePart(id.Organization(s[1]))
			}
		}
		if strings.HasSuffix(m[1], "/slots.conf") {
			lines := strings.Split(string(files["slots.conf"]), "\n")
			if i, err := strconv.Atoi(m[2]); err == nil && i >= 1 && i <= len(lines) {
				if g := gatewayID.FindString(lines[i-1]); g != "" {
					return slotPart(id.Gateway(g))
				}
			}
		}
	}
	for _, s := range cfg.Sites {
		if s.Certificate && strings.Contains(message, r.l.certificate(s.Organization)) {
			return sitePart(s.Organization)
		}
	}
	return ""
}

// without leaves parts out of a configuration.
func without(cfg Config, parts map[string]bool) Config {
	return keep(cfg, func(part string) bool { return !parts[part] })
}

// keep leaves only the parts that ok accepts.
func keep(cfg Config, ok func(part string) bool) Config {
	var out Config
	for _, s := range cfg.Slots {
		if ok(slotPart(s.Gateway)) {
			out.Slots = append(out.Slots, s)
		}
	}
	for _, s := range cfg.Sites {
		if ok(sitePart(s.Organization)) {
			out.Sites = append(out.Sites, s)
		}
	}
	return out
}

// partNames lists the parts of a configuration in order.
func partNames(cfg Config) []string {
	var out []string
	keep(cfg, func(part string) bool { out = append(out, part); return false })
	return out
}
