package container

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// The headers in which nginx tells of a request (Ask…), and in which it or the container is told of it (Tell…). What a
// client sends under these names goes nowhere.
const (
	AskOrganization = "X-Demiurge-Organization"
	AskLabel        = "X-Demiurge-Label" // what stands behind uc- in the host name
	AskMethod       = "X-Demiurge-Method"
	AskURI          = "X-Demiurge-Uri"
	AskScheme       = "X-Forwarded-Proto"
	AskUpgrade      = "X-Demiurge-Upgrade"

	TellUpstream      = "X-Demiurge-Upstream" // where nginx sends the request
	TellUser          = "X-Demiurge-User"
	TellUsername      = "X-Demiurge-Username"
	TellProject       = "X-Demiurge-Project"
	TellContainer     = "X-Demiurge-Container"
	TellService       = "X-Demiurge-Service"
	TellCookie        = "X-Demiurge-Cookie"        // the client's, without those of this package
	TellAuthorization = "X-Demiurge-Authorization" // the client's, unless it is good elsewhere too
)

// The names under which other programs look for the person.
const (
	forwardedUser     = "X-Forwarded-User"
	forwardedUsername = "X-Forwarded-Preferred-Username"
)

// The paths that nginx asks at the door. Both are nginx's own on the names of containers.
const (
	PathCheck = "/-/access"
	PathEnter = "/-/enter"
)

// The cookies at a container's name.
const (
	sessionCookie = "container"
	enterCookie   = "enter"
)

// cookieName is what a cookie is called. Browsers take none that begins with __Host- from any other host, nor for
// another; without TLS, on a developer's machine, they take none at all.
func (o *Options) cookieName(what string) string {
	if o.Scheme == "https" {
		return "__Host-demiurge-" + what
	}
	return "demiurge-" + what
}

// enterLife is how long a person may take to log in.
const enterLife = 10 * time.Minute

// largestReturn bounds the address that a person comes back to after the login.
const largestReturn = 2000

// Door answers nginx: may this request pass, and where to (ServeHTTP); and it carries what may last, and answers what
// does not pass (Carry). It listens where only nginx reaches it.
type Door struct {
	opts    *Options
	logger  hclog.Logger
	passage *Passage
	open    func(context.Context, id.Organization) (*Registry, error)
}

// NewDoor makes the door of a host's containers. open finds the registry of an organization that is served here.
func NewDoor(all *Organizations, open func(context.Context, id.Organization) (*Registry, error)) *Door {
	return &Door{opts: &all.opts, logger: all.opts.Logger, passage: all.passage, open: open}
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	q, ok := d.question(r.Context(), r.Header)
	switch {
	case r.URL.Path == PathCheck && ok:
		d.check(w, q)
	case r.URL.Path == PathCheck:
		w.WriteHeader(http.StatusForbidden)
	case r.URL.Path == PathEnter && ok && r.Method == http.MethodGet:
		d.enter(w, r, q)
	default:
		page(w, http.StatusNotFound, "Not found", "There is nothing at this address.")
	}
}

// question is one request to a container, as nginx describes it.
type question struct {
	header    http.Header
	registry  *Registry
	container ID
	service   ServiceName
	origin    string // of the container's name
}

func (d *Door) question(ctx context.Context, h http.Header) (question, bool) {
	q := question{header: h}
	org, err := id.ParseOrganization(h.Get(AskOrganization))
	if err != nil {
		return q, false
	}
	if q.container, q.service, err = ParseLabel(h.Get(AskLabel)); err != nil {
		return q, false
	}
	if q.registry, err = d.open(ctx, org); err != nil {
		d.logger.Debug("a request to a container of an organization that is not served", "organization", org, "error", err)
		return q, false
	}
	q.origin = d.opts.origin(Hostname(q.registry.hostname, q.container, q.service))
	return q, true
}

// overheard reports whether a request came in clear where it must not, so that everybody on the way has seen it.
func (d *Door) overheard(q question) bool { return q.header.Get(AskScheme) != d.opts.Scheme }

// visit is a question with who asks.
type visit struct {
	asked         Asked
	who           Caller
	again         func() (Caller, bool) // finds him again; nil: nobody is known
	container     ID
	cookie        string // the client's, without those of this package
	authorization string // the client's, unless it is good elsewhere too
}

func (d *Door) visit(q question) visit {
	h := q.header
	cookies := h.Get("Cookie")
	v := visit{container: q.container, cookie: d.opts.withoutOurs(cookies), asked: Asked{
		Service: q.service, Method: h.Get(AskMethod), Upgrade: h.Get(AskUpgrade) != "", Own: q.origin, Origin: h.Get("Origin"), Site: h.Get("Sec-Fetch-Site"),
	}}
	token, isBearer := bearerOf(h.Get("Authorization"))
	var bearer Bearer
	if isBearer {
		bearer, isBearer = q.registry.people.Bearer(token)
	}
	v.who, v.again = q.registry.visitor(cookieOf(cookies, d.opts.cookieName(sessionCookie)), q.container, q.service)
	if v.again == nil && isBearer {
		v.who, v.again = q.registry.program(token, bearer)
	}
	if !isBearer || q.registry.owns(q.container, bearer.Client) {
		v.authorization = h.Get("Authorization")
	}
	return v
}

// told is what a container is told of a request that passed, and what it gets of the client's own.
type told struct{ user, username, project, container, service, cookie, authorization string }

func (v *visit) told(d Decision) told {
	return told{
		user: string(d.User), username: url.PathEscape(d.Username), project: string(d.Project), container: string(v.container), service: string(d.Service),
		cookie: v.cookie, authorization: v.authorization,
	}
}

// check answers whether nginx may bring a request to its container by itself, and where that is. nginx brings all
// others to Carry, which answers and counts them.
func (d *Door) check(w http.ResponseWriter, q question) {
	if lasts(q.header) || d.overheard(q) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	v := d.visit(q)
	decision := decide(q.registry.people.Policy(), v.who, q.registry.target(q.container), v.asked)
	if decision.Answer != Passed {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	q.registry.count(Passed)
	t, out := v.told(decision), w.Header()
	for name, value := range map[string]string{
		TellUpstream: decision.Upstream.String(), TellUser: t.user, TellUsername: t.username, TellProject: t.project, TellContainer: t.container,
		TellService: t.service, TellCookie: t.cookie, TellAuthorization: t.authorization,
	} {
		out.Set(name, value)
	}
	w.WriteHeader(http.StatusNoContent)
}

// navigates reports whether a person opens a page, who can be sent to log in. Anything else is told.
func navigates(h http.Header) bool {
	if m := h.Get(AskMethod); m != http.MethodGet && m != http.MethodHead || h.Get(AskUpgrade) != "" {
		return false
	}
	if mode := h.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(h.Get("Accept"), "text/html")
}

// lasts reports whether a request may go on for long, so that somebody must be able to end it. What only asks for a
// part of a page, and what a program gets that did not ask for a stream, goes straight to the container: that is
// faster, and whatever it is, it was asked for by who might have it then. nginx looks at the same headers and brings
// what lasts to Carry without a question before; where it is mistaken, the answer to that is no.
func lasts(h http.Header) bool {
	if m := h.Get(AskMethod); m != http.MethodGet && m != http.MethodHead || h.Get(AskUpgrade) != "" {
		return true
	}
	switch h.Get("Sec-Fetch-Dest") {
	case "", "image", "script", "style", "font", "manifest":
		return strings.Contains(strings.ToLower(h.Get("Accept")), "text/event-stream")
	}
	return true
}

// enter takes the ticket that a browser brings back.
func (d *Door) enter(w http.ResponseWriter, r *http.Request, q question) {
	nonce, back, _ := strings.Cut(cookieOf(r.Header.Get("Cookie"), d.opts.cookieName(enterCookie)), ".")
	value, ok := q.registry.redeem(r.URL.Query().Get("ticket"), q.container, q.service, digestOf(nonce))
	if !ok || nonce == "" {
		page(w, http.StatusForbidden, "Not entered", `Your way in has expired, or was begun in another browser. <a href="/">Try again.</a>`)
		return
	}
	to := "/"
	if raw, err := coding.DecodeString(back); err == nil && ownAddress(string(raw)) {
		to = string(raw)
	}
	h := w.Header()
	h.Add("Set-Cookie", d.opts.cookie(sessionCookie, value.Reveal(), q.registry.opts.SessionLife))
	h.Add("Set-Cookie", d.opts.cookie(enterCookie, "", 0))
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Location", to)
	w.WriteHeader(http.StatusSeeOther)
}

// ownAddress accepts what stays at the same name: a path with its query, which no browser takes for an
// address elsewhere.
func ownAddress(to string) bool {
	return strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") && !strings.ContainsFunc(to, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' })
}

// owns reports whether an OAuth client is one of the container's services.
func (r *Registry) owns(c ID, client string) bool {
	t := r.target(c)
	return t != nil && slices.ContainsFunc(t.Services, func(k kept) bool { return k.Client == client })
}

func bearerOf(authorization string) (token string, ok bool) {
	scheme, token, ok := strings.Cut(authorization, " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// cookieOf finds the value of the first cookie with a name.
func cookieOf(header, name string) string {
	for part := range strings.SplitSeq(header, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && k == name {
			return v
		}
	}
	return ""
}

// withoutOurs leaves the cookies that are the container's own business.
func (o *Options) withoutOurs(header string) string {
	var out []string
	for part := range strings.SplitSeq(header, ";") {
		part = strings.TrimSpace(part)
		if name, _, _ := strings.Cut(part, "="); part != "" && name != o.cookieName(sessionCookie) && name != o.cookieName(enterCookie) {
			out = append(out, part)
		}
	}
	return strings.Join(out, "; ")
}

func (o *Options) cookie(what, value string, life time.Duration) string {
	c := http.Cookie{Name: o.cookieName(what), Value: value, Path: "/", Secure: o.Scheme == "https", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(life / time.Second)}
	if life == 0 {
		c.MaxAge = -1
	}
	return c.String()
}
