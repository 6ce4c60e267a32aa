package tenantapi

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

//go:embed pages/*.html
var pageFiles embed.FS

var pages = template.Must(template.ParseFS(pageFiles, "pages/*.html"))

// consentLife is how long a person may think.
const consentLife = 10 * time.Minute

// question is what a page of consent brings back, sealed: so no other page can answer it.
type question struct {
	Session sessionKey `json:"s"`
	About   agreement  `json:"a"`
	Return  string     `json:"r"`
	Lasting bool       `json:"l"`
}

// about names what a person is asked.
func about(q oauth.Question) agreement {
	form, _ := json.Marshal([]any{q.Client.ID, q.Redirect, q.Scope}) // strings only
	return sha256.Sum256(form)
}

// onMachine reports whether a redirect leads to the person's own machine, where any program may wait for it:
// that it is the client nobody can tell, so the person is asked every time (RFC 8252, section 8.6).
func onMachine(redirect string) bool { return strings.HasPrefix(redirect, "http://") }

// Ask implements oauth.Consent.
func (p people) Ask(w http.ResponseWriter, r *http.Request, q oauth.Question) oauth.Verdict {
	s := p.server
	if len(r.Header.Values("Authorization")) > 0 {
		return oauth.Agreed // no page of anybody could have made the person's program send its token
	}
	one, ok := s.sessionOf(p.tenant, p.site, r)
	if !ok || one.user != q.User {
		return oauth.Declined
	}
	key := about(q)
	if v := p.site.sessions.verdict(one, key); v != oauth.Asked {
		return v
	}
	sealed, err := s.sealer.seal("consent", consentLife, question{one.key, key, r.URL.RequestURI(), !onMachine(q.Redirect)})
	if err != nil {
		s.opts.Logger.Error("a person cannot be asked", "error", err)
		return oauth.Declined
	}
	name, _ := p.tenant.Member(q.User)
	if name == "" {
		name = string(q.User)
	}
	u, err := url.Parse(q.Redirect)
	if err != nil {
		return oauth.Declined
	}
	s.render(w, http.StatusOK, "consent.html", formTarget(u), map[string]any{
		"Organization": p.tenant.Name(), "Client": q.Client.Name, "Public": q.Client.Public, "Scope": q.Scope,
		"User": name, "Redirect": u.Host, "OnMachine": onMachine(q.Redirect), "Ask": sealed, "Action": pathConsent,
	})
	return oauth.Asked
}

// formTarget is what a form may lead to, in the end: this name, and the client's.
func formTarget(u *url.URL) string {
	if strings.HasPrefix(u.Host, "[") { // not an address that the policy's language has
		return "'self' http:"
	}
	return "'self' " + u.Scheme + "://" + u.Host
}

// consent takes a person's answer and leads back to the request that asked.
func (s *Server) consent(c *Call) error {
	in, err := s.site(c)
	if err != nil {
		return err
	}
	one, ok := s.sessionOf(c.Tenant, in, c.R)
	if !ok {
		return fault.New(fault.Unauthenticated, "log in first")
	}
	if !sameOrigin(c.R) {
		return errCrossOrigin
	}
	raw, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, 16<<10))
	if err != nil {
		return fault.New(fault.InvalidRequest, "the answer did not arrive whole")
	}
	form, err := url.ParseQuery(string(raw))
	var q question
	if err == nil {
		err = s.sealer.open("consent", form.Get("ask"), &q)
	}
	if err != nil || q.Session != one.key {
		s.page(c.W, http.StatusBadRequest, "Too late", "This question was not asked here, or it is too long ago. Go back to the program that you came from.")
		return nil
	}
	v := oauth.Declined
	if form.Get("decision") == "allow" {
		v = oauth.Agreed
	}
	in.sessions.decide(one, q.About, v, q.Lasting)
	c.W.Header().Set("Location", q.Return)
	c.W.WriteHeader(http.StatusSeeOther)
	return nil
}

// page shows a person a text of ours.
func (s *Server) page(w http.ResponseWriter, status int, title, text string) {
	s.render(w, status, "text.html", "'none'", map[string]any{"Title": title, "Text": text})
}

// style is the one sheet that pages have, and styleHash what the policy knows it by.
const style = `body{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:4rem auto;padding:0 1rem;color:#222}h1{font-size:1.3rem}code{background:#eee;padding:.1rem .3rem;border-radius:.2rem}button{font:inherit;padding:.5rem 1.2rem;margin:1rem .5rem 0 0;border:1px solid #666;border-radius:.3rem;background:#fff}button.go{background:#1a5fb4;border-color:#1a5fb4;color:#fff}`

var styleHash = func() string {
	sum := sha256.Sum256([]byte(style))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}()

// render writes a page that loads nothing, runs nothing and is framed by nobody.
func (s *Server) render(w http.ResponseWriter, status int, name, formTarget string, data map[string]any) {
	data["Style"] = template.CSS(style) // our own constant
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src '"+styleHash+"'; base-uri 'none'; frame-ancestors 'none'; form-action "+formTarget)
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(status)
	if err := pages.ExecuteTemplate(w, name, data); err != nil {
		s.opts.Logger.Debug("a page was not written whole", "page", name, "error", err)
	}
}
