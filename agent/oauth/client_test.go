package oauth

import (
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// P11: people are sent back to the organization's own names and to their own machine, and nowhere else.
func TestP11RedirectsOfOthersAreRefused(t *testing.T) {
	hostname, other := id.Hostname(ourOrg, "example.test"), id.Hostname(otherOrg, "example.test")
	for to, ok := range map[string]bool{
		"https://" + hostname:                             true,
		"https://" + hostname + "/":                       true,
		"https://" + hostname + "/a/b":                    true,
		"https://uc-1." + hostname + "/back":              true,
		"https://uc-1--grafana." + hostname + "/x":        true,
		"http://127.0.0.1/back":                           true,
		"http://127.0.0.1:4711/back":                      true,
		"http://[::1]/back":                               true,
		"https://" + other + "/back":                      false,
		"https://uc-1." + other + "/back":                 false,
		"https://x" + hostname + "/":                      false,
		"https://" + hostname + ".evil.test/":             false,
		"https://example.test/":                           false,
		"https://" + hostname + ":8443/":                  true,
		"https://" + strings.ToUpper(hostname):            false,
		"http://" + hostname + "/back":                    false,
		"https://u@" + hostname + "/":                     false,
		"https://" + hostname + "/?a=b":                   false,
		"https://" + hostname + "/?":                      false,
		"https://" + hostname + "/#a":                     false,
		"https://" + hostname + "/a/../b":                 false,
		"https://" + hostname + "\\@evil.test/":           false,
		"https://" + hostname + "/a b":                    false,
		"https://." + hostname + "/":                      false,
		"https://*." + hostname + "/":                     false,
		"//" + hostname + "/":                             false,
		"https:" + hostname:                               false,
		"http://localhost/back":                           false,
		"http://127.0.0.2/back":                           false,
		"http://127.0.0.1.evil.test/back":                 false,
		"http://127.0.0.1:0x50/":                          false,
		"http://127.0.0.1:70000/":                         false,
		"com.example.app:/back":                           false,
		"javascript:alert(1)":                             false,
		"":                                                false,
		"https://" + hostname + strings.Repeat("/a", 600): false,
	} {
		c, err := NewClient(hostname, Client{Name: "x", Redirects: []string{to}, Scope: []string{"a"}})
		if (err == nil) != ok || err != nil && !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%q: %v", to, err)
		}
		if err == nil && !validClientID(string(c.ID)) {
			t.Errorf("id %q", c.ID)
		}
	}
}

func TestClientsAreChecked(t *testing.T) {
	hostname := id.Hostname(ourOrg, "example.test")
	fine := func() Client {
		return Client{Name: "x", Redirects: []string{"http://127.0.0.1/"}, Scope: []string{"b", "a", "b"}}
	}
	c, err := NewClient(hostname, fine())
	must(t, err)
	if strings.Join(c.Scope, " ") != "a b" {
		t.Fatalf("scope %q", c.Scope)
	}
	for name, edit := range map[string]func(*Client){
		"no name":              func(c *Client) { c.Name = "" },
		"a long name":          func(c *Client) { c.Name = strings.Repeat("x", 101) },
		"a name of two lines":  func(c *Client) { c.Name = "a\nb" },
		"a name turned around": func(c *Client) { c.Name = "a\u202eb" },
		"not text":             func(c *Client) { c.Name = "\xff" },
		"a public service":     func(c *Client) { c.Public, c.Service = true, true },
		"no use":               func(c *Client) { c.Redirects = nil },
		"no scope":             func(c *Client) { c.Scope = nil },
		"a scope with a space": func(c *Client) { c.Scope = []string{"a b"} },
		"a long scope":         func(c *Client) { c.Scope = []string{strings.Repeat("x", 65)} },
		"many scopes":          func(c *Client) { c.Scope = strings.Split(strings.Repeat("x ", 10)+strings.Join(letters(65), " "), " ") },
		"a redirect twice":     func(c *Client) { c.Redirects = append(c.Redirects, c.Redirects[0]) },
		"many redirects":       func(c *Client) { c.Redirects = letters(21) },
	} {
		c := fine()
		edit(&c)
		if _, err := NewClient(hostname, c); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := newFixture(t).open(ourOrg)
	kept, secret := addClient(t, s, fine())
	if !s.Authenticate(kept, secret) || s.Authenticate(kept, "") || s.Authenticate("cl-x", "") || s.Authenticate(publicClient(t, s), "") {
		t.Error("the wrong secrets are right")
	}
	if _, err := s.AddClient(ctx, s.Clients()[0]); !fault.Is(err, fault.Conflict) {
		t.Errorf("a client is added twice: %v", err)
	}
}

func letters(n int) (out []string) {
	for i := range n {
		out = append(out, "s"+strings.Repeat("x", i%60)+string(rune('a'+i%26)))
	}
	return out
}
