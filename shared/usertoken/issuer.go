package usertoken

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Issuer is one party whose tokens are believed, as a configuration names it. A zero field has its default.
type Issuer struct {
	Name       string        `yaml:"name"`        // short, for logs and events
	Issuer     string        `yaml:"issuer"`      // its claim iss, to the letter
	Audience   string        `yaml:"audience"`    // what its claim aud must name
	JWKSFile   string        `yaml:"jwks_file"`   // its keys, from a file that is watched
	JWKSURL    string        `yaml:"jwks_url"`    // its keys, asked for again and again
	Algorithms []string      `yaml:"algorithms"`  // the only ones that count
	UserClaim  string        `yaml:"user_claim"`  // the claim that names the user; default sub
	UserPrefix string        `yaml:"user_prefix"` // put before that name
	Leeway     time.Duration `yaml:"leeway"`      // difference of clocks; default 10s
	MaxLife    time.Duration `yaml:"max_life"`    // longest time to the expiry; default 24h
	Refresh    time.Duration `yaml:"refresh"`     // how often the URL is asked; default 5m
	MaxStale   time.Duration `yaml:"max_stale"`   // how long keys count when the URL gives no others; default 24h
}

// Defaults of an Issuer, and the bounds of what may be set.
const (
	defaultClaim    = "sub"
	defaultLeeway   = 10 * time.Second
	defaultMaxLife  = 24 * time.Hour
	defaultRefresh  = 5 * time.Minute
	defaultMaxStale = 24 * time.Hour

	maxLeeway   = 2 * time.Minute
	maxLife     = 31 * 24 * time.Hour
	minRefresh  = 30 * time.Second
	maxMaxStale = 31 * 24 * time.Hour
	maxIssuers  = 16
)

// withDefaults fills the fields that are not set.
func (i Issuer) withDefaults() Issuer {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	if i.UserClaim == "" {
		i.UserClaim = defaultClaim
	}
	or(&i.Leeway, defaultLeeway)
	or(&i.MaxLife, defaultMaxLife)
	or(&i.Refresh, defaultRefresh)
	or(&i.MaxStale, defaultMaxStale)
	return i
}

// Validate checks a list of issuers that stands under a key of a configuration.
func Validate(key string, issuers []Issuer) error {
	var errs []error
	if len(issuers) > maxIssuers {
		errs = append(errs, config.Invalid(key, fmt.Sprintf("%d issuers are too many", len(issuers)), fmt.Sprintf("name at most %d", maxIssuers)))
	}
	for n, i := range issuers {
		at := fmt.Sprintf("%s[%d]", key, n)
		for _, before := range issuers[:n] {
			if before.Name == i.Name {
				errs = append(errs, config.Invalid(at+".name", fmt.Sprintf("two issuers have the name %q", i.Name), "give each its own"))
			}
			if before.Issuer == i.Issuer {
				errs = append(errs, config.Invalid(at+".issuer", fmt.Sprintf("%q stands there twice", i.Issuer), "name each issuer once; its key set may hold many keys"))
			}
		}
		errs = append(errs, i.validate(at)...)
	}
	return errors.Join(errs...)
}

// validate checks what stands at one place of the list.
func (i Issuer) validate(at string) []error {
	var errs []error
	bad := func(key, message, remedy string) { errs = append(errs, config.Invalid(at+"."+key, message, remedy)) }
	if _, err := id.ParseHost(i.Name); err != nil {
		bad("name", fmt.Sprintf("%q does not name an issuer", i.Name), "set 1 to 32 characters of [a-z0-9-], such as platform")
	}
	if i.Issuer == "" {
		bad("issuer", "it is not set", "set what its tokens have in their claim iss")
	}
	if i.Audience == "" {
		bad("audience", "without one, tokens for any other service would open this one", "set what the tokens for Demiurge have in their claim aud")
	}
	if (i.JWKSFile == "") == (i.JWKSURL == "") {
		bad("jwks_file", "the keys come from a file or from a URL", "set exactly one of jwks_file and jwks_url")
	}
	if i.JWKSFile != "" && !filepath.IsAbs(i.JWKSFile) {
		bad("jwks_file", fmt.Sprintf("%q is not an absolute path", i.JWKSFile), "set an absolute path")
	}
	if i.JWKSURL != "" {
		if err := CheckURL(i.JWKSURL); err != nil {
			bad("jwks_url", err.Error(), "set an https:// URL; http:// is for loopback addresses only")
		}
	}
	if len(i.Algorithms) == 0 {
		bad("algorithms", "none is named", "name those that the issuer signs with, such as [RS256]")
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(algorithms, a) {
			bad("algorithms", fmt.Sprintf("%q is not an algorithm with a public key", a), "use some of "+strings.Join(algorithms, ", "))
		}
	}
	if _, err := id.ParseUser(i.UserPrefix + "x"); err != nil {
		bad("user_prefix", fmt.Sprintf("%q cannot begin the name of a user", i.UserPrefix), "use characters of [A-Za-z0-9._@-], beginning with a letter or digit")
	}
	for key, limit := range map[string]struct{ set, least, most time.Duration }{
		"leeway":    {i.Leeway, 0, maxLeeway},
		"max_life":  {i.MaxLife, 0, maxLife},
		"refresh":   {i.Refresh, minRefresh, maxMaxStale},
		"max_stale": {i.MaxStale, minRefresh, maxMaxStale},
	} {
		if limit.set != 0 && (limit.set < limit.least || limit.set > limit.most) {
			bad(key, fmt.Sprintf("%s is out of bounds", limit.set), fmt.Sprintf("set %s to %s, or leave it out for the default", limit.least, limit.most))
		}
	}
	return errs
}

// CheckURL refuses an address at which anybody on the way could hand out keys.
func CheckURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return errors.New("it is not a URL")
	}
	if u.User != nil || u.Fragment != "" {
		return errors.New("it has a user, a password or a fragment")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if host, err := netip.ParseAddr(strings.Trim(u.Hostname(), "[]")); err == nil && host.IsLoopback() {
			return nil
		}
		return fmt.Errorf("whoever is between here and %s could sign as any user", net.JoinHostPort(u.Hostname(), "80"))
	}
	return fmt.Errorf("the scheme is %q", u.Scheme)
}
