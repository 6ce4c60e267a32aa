package oauth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// ClientID names a client: "cl-" and 26 characters of [a-z2-7].
type ClientID string

// Client is a program that asks for tokens.
type Client struct {
	ID        ClientID
	Name      string   // shown to people who are asked for their consent
	Public    bool     // it cannot keep a secret: none is given to it, and it must use PKCE
	Service   bool     // it may ask for tokens for itself (client credentials); never a public one
	Redirects []string // where people may be sent back to; none: no codes for this client
	Scope     []string // the most it can be given
}

const (
	maxName      = 100
	maxRedirects = 20
	maxRedirect  = 1000
	maxScopes    = 64
	maxScope     = 64
)

// NewClient checks what a caller sent as a client of an organization with that host name, and gives it an id.
func NewClient(hostname string, c Client) (Client, error) {
	c.ID = ClientID("cl-" + strings.ToLower(rand.Text()))
	c.Redirects, c.Scope = slices.Clone(c.Redirects), slices.Clone(c.Scope)
	slices.Sort(c.Scope)
	c.Scope = slices.Compact(c.Scope)
	if err := c.check(); err != nil {
		return Client{}, err
	}
	if strings.ContainsFunc(c.Name, id.Hidden) { // people are shown it before they consent; earlier ones stay as they are
		return Client{}, fault.Invalid("name", "cannot use %q as the name of a client: leave out characters that cannot be seen or turn the text around", fault.Shorten(c.Name))
	}
	for _, r := range c.Redirects {
		if !ownRedirect(hostname, r) {
			return Client{}, fault.Invalid("redirects", "cannot send people to %q: use https on %s or a name below it, or http on 127.0.0.1 or [::1]; without a query or a fragment",
				fault.Shorten(r), hostname)
		}
	}
	return c, nil
}

// check is what holds for every client, whatever the organization's host name is.
func (c *Client) check() error {
	switch {
	case c.Name == "" || len(c.Name) > maxName || !utf8.ValidString(c.Name) || strings.ContainsFunc(c.Name, unicode.IsControl):
		return fault.Invalid("name", "cannot use %q as the name of a client: give 1 to %d bytes of text", fault.Shorten(c.Name), maxName)
	case c.Public && c.Service:
		return fault.Invalid("service", "client %q cannot be public and a service: a service must keep a secret", c.Name)
	case len(c.Redirects) == 0 && !c.Service:
		return fault.Invalid("redirects", "client %q has no use: give a redirect, or make it a service", c.Name)
	case len(c.Redirects) > maxRedirects:
		return fault.Invalid("redirects", "client %q has %d redirects: give at most %d", c.Name, len(c.Redirects), maxRedirects)
	case len(c.Scope) == 0 || len(c.Scope) > maxScopes:
		return fault.Invalid("scope", "client %q has %d scopes: give 1 to %d", c.Name, len(c.Scope), maxScopes)
	}
	for _, s := range c.Scope {
		if !validScope(s) {
			return fault.Invalid("scope", "cannot use %q as a scope: give 1 to %d printable characters without space, quote and backslash", fault.Shorten(s), maxScope)
		}
	}
	for i, r := range c.Redirects {
		if len(r) > maxRedirect || !plainURI(r) || slices.Contains(c.Redirects[:i], r) {
			return fault.Invalid("redirects", "cannot use %q as a redirect: give each one once, whole, without a query or a fragment", fault.Shorten(r))
		}
	}
	return nil
}

func (c *Client) clone() Client {
	out := *c
	out.Redirects, out.Scope = slices.Clone(c.Redirects), slices.Clone(c.Scope)
	return out
}

func validClientID(s string) bool {
	rest, ok := strings.CutPrefix(s, "cl-")
	return ok && len(rest) == 26 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// validScope is RFC 6749, section 3.3, with a limit.
func validScope(s string) bool {
	return s != "" && len(s) <= maxScope && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == '\\'
	})
}

// plainURI accepts an absolute URI that is written in one way only: what it parses to prints the same.
func plainURI(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.String() == s && u.Host != "" && u.User == nil && u.Opaque == "" &&
		!strings.ContainsAny(s, "?#\\") && (u.Scheme == "https" || u.Scheme == "http") &&
		!strings.Contains(u.Path, "/../") && !strings.HasSuffix(u.Path, "/..")
}

// ownRedirect reports whether a redirect stays with the organization: https on its own host name or one
// below it, or the machine of the person (RFC 8252, section 7.3). Names of other organizations, and
// "localhost", which a name server can lead elsewhere, are neither.
func ownRedirect(hostname, s string) bool {
	if !plainURI(s) {
		return false
	}
	if _, ok := cutLoopback(s); ok {
		return true
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host != u.Hostname() && u.Port() == "" {
		return false
	}
	host := u.Hostname()
	if below, ok := strings.CutSuffix(host, "."+hostname); ok {
		_, err := id.ParseDomain(below)
		return err == nil
	}
	return host == hostname
}

// matches reports whether a redirect that came with a request is the registered one, character by
// character. Only the port of a loopback address may differ: a program on a person's machine takes the
// port it gets (RFC 8252, section 7.3).
func matches(registered, sent string) bool {
	if registered == sent {
		return true
	}
	a, ok := cutLoopback(registered)
	if !ok {
		return false
	}
	b, ok := cutLoopback(sent)
	return ok && a == b
}

// cutLoopback takes the port out of a redirect to the machine of the person.
func cutLoopback(s string) (string, bool) {
	for _, prefix := range []string{"http://127.0.0.1", "http://[::1]"} {
		rest, ok := strings.CutPrefix(s, prefix)
		if !ok {
			continue
		}
		end := strings.IndexByte(rest, '/')
		if end < 0 {
			end = len(rest)
		}
		if port := rest[:end]; port != "" {
			if port[0] != ':' { // more digits would make another address
				return "", false
			}
			if _, err := netip.ParseAddrPort("127.0.0.1" + port); err != nil {
				return "", false
			}
		}
		return prefix + rest[end:], plainURI(prefix + rest[end:])
	}
	return "", false
}

// secretOf is the secret of a confidential client, made of 256 bits that nobody can guess.
func secretOf(seed string) string { return "dms_" + seed }

// isSecret compares in constant time.
func isSecret(want digest, sent string) bool {
	got := sha256.Sum256([]byte(sent))
	return want != digest{} && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}
