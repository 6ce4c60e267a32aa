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

// The headers in which nginx tells of a request (Ask…) and is told what to do with it (Tell…). nginx sets all
// of them itself; what a client sends under these names goes nowhere.
const (
	AskOrganization = "X-Demiurge-Organization"
	AskLabel        = "X-Demiurge-Label" // what stands behind uc- in the host name
	AskMethod       = "X-Demiurge-Method"
	AskURI          = "X-Demiurge-Uri"
	AskScheme       = "X-Forwarded-Proto"
	AskUpgrade      = "X-Demiurge-Upgrade"

	TellUpstream      = "X-Demiurge-Upstream" // where nginx sends the request: the container, or the passage
	TellPass          = "X-Demiurge-Pass"     // which it shows at the passage, once
	TellUser          = "X-Demiurge-User"
	TellUsername      = "X-Demiurge-Username"
	TellProject       = "X-Demiurge-Project"
	TellContainer     = "X-Demiurge-Container"
	TellService       = "X-Demiurge-Service"
	TellCookie        = "X-Demiurge-Cookie"        // the client's, without those of this package
	TellAuthorization = "X-Demiurge-Authorization" // the client's, unless it is good elsewhere too
	TellAnswer        = "X-Demiurge-Answer"
	TellLogin         = "X-Demiurge-Login"        // where a browser goes to log in
	TellLoginCookie   = "X-Demiurge-Login-Cookie" // that it keeps meanwhile
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

// Door answers nginx: may this request pass, and where to. It listens where only nginx reaches it.
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
	q, ok := d.question(r)
	switch {
	case r.URL.Path == PathCheck && ok:
		d.check(w, q)
	case r.URL.Path == PathCheck:
		d.tell(w, Missing)
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

func (d *Door) question(r *http.Request) (question, bool) {
	q := question{header: r.Header}
	org, err := id.ParseOrganization(r.Header.Get(AskOrganization))
	if err != nil {
		return q, false
	}
	if q.container, q.service, err = ParseLabel(r.Header.Get(AskLabel)); err != nil {
		return q, false
	}
	if q.registry, err = d.open(r.Context(), org); err != nil {
		d.logger.Debug("a request to a container of an organization that is not served", "organization", org, "error", err)
		return q, false
	}
	q.origin = d.opts.origin(Hostname(q.registry.hostname, q.container, q.service))
	return q, true
}

// check answers the question of every single request.
func (d *Door) check(w http.ResponseWriter, q question) {
	h := q.header
	if h.Get(AskScheme) != d.opts.Scheme {
		d.logger.Debug("a request to a container is refused: it has been seen by everybody on the way", "container", q.container)
		d.tell(w, Refused)
		return
	}
	cookies := h.Get("Cookie")
	token, isBearer := bearerOf(h.Get("Authorization"))
	var bearer Bearer
	if isBearer {
		bearer, isBearer = q.registry.people.Bearer(token)
	}
	who, again := q.registry.visitor(cookieOf(cookies, d.opts.cookieName(sessionCookie)), q.container, q.service)
	if again == nil && isBearer {
		who, again = q.registry.program(token, bearer)
	}
	asked := Asked{
		Service: q.service, Method: h.Get(AskMethod), Upgrade: h.Get(AskUpgrade) != "", Own: q.origin, Origin: h.Get("Origin"), Site: h.Get("Sec-Fetch-Site"),
	}
	decision := q.registry.Access(q.container, who, asked)
	out := w.Header()
	switch decision.Answer {
	case Passed:
		out.Set(TellUpstream, decision.Upstream.String())
		if lasts(h) {
			pass, ok := d.passage.expect(&crossing{registry: q.registry, container: q.container, asked: asked, who: again}, d.opts.Now())
			if !ok {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			out.Set(TellUpstream, "unix:"+d.opts.Passage)
			out.Set(TellPass, pass)
		}
		out.Set(TellUser, string(decision.User))
		out.Set(TellUsername, url.PathEscape(decision.Username))
		out.Set(TellProject, string(decision.Project))
		out.Set(TellContainer, string(q.container))
		out.Set(TellService, string(decision.Service))
		out.Set(TellCookie, d.opts.withoutOurs(cookies))
		if !isBearer || q.registry.owns(q.container, bearer.Client) {
			out.Set(TellAuthorization, h.Get("Authorization"))
		}
	case Anonymous:
		if navigates(h) {
			d.sendToLogin(out, q)
		} else {
			out.Set("WWW-Authenticate", `Bearer realm="`+q.origin+`"`)
		}
	default:
		d.logger.Debug("a request to a container is refused", "container", q.container, "answer", decision.Answer, "reason", decision.Reason)
	}
	d.tell(w, decision.Answer)
}

// tell answers in the three ways that nginx knows: 2xx is yes, 401 and 403 are no with the reason beside, and
// all else is an error, which is no too.
func (d *Door) tell(w http.ResponseWriter, a Answer) {
	w.Header().Set(TellAnswer, a.String())
	switch a {
	case Passed:
		w.WriteHeader(http.StatusNoContent)
	case Anonymous:
		w.WriteHeader(http.StatusUnauthorized)
	default:
		w.WriteHeader(http.StatusForbidden)
	}
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
// faster, and whatever it is, it was asked for by who might have it then.
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

// sendToLogin sends a browser to the organization's name, with a cookie that says on return where it wanted to
// go, and that proves that it is the same browser.
func (d *Door) sendToLogin(out http.Header, q question) {
	nonce, _, _ := strings.Cut(cookieOf(q.header.Get("Cookie"), d.opts.cookieName(enterCookie)), ".")
	if len(nonce) != len(newNonce()) {
		nonce = newNonce() // else another window of the same browser is on its way too
	}
	to := q.header.Get(AskURI)
	if len(to) > largestReturn || !ownAddress(to) {
		to = "/"
	}
	query := url.Values{"state": {digestOf(nonce)}}
	if q.service != "" {
		query.Set("service", string(q.service))
	}
	out.Set(TellLogin, d.opts.origin(q.registry.hostname)+"/containers/"+string(q.container)+"/enter?"+query.Encode())
	out.Set(TellLoginCookie, d.opts.cookie(enterCookie, nonce+"."+coding.EncodeToString([]byte(to)), enterLife))
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

// page writes a small page. What stands in it is of this program alone.
func page(w http.ResponseWriter, status int, title, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	_, _ = w.Write([]byte("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>" + title + "</title><h1>" + title + "</h1><p>" + text + "</p></html>\n"))
}
