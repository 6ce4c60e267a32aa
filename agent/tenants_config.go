package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// OAuthConfig is the authorization server of every organization on this host.
type OAuthConfig struct {
	Port            int           `yaml:"port"`             // that people reach this host's nginx at over HTTPS
	CodeLifetime    time.Duration `yaml:"code_lifetime"`    // of an authorization code
	AccessLifetime  time.Duration `yaml:"access_lifetime"`  // of an access token
	RefreshLifetime time.Duration `yaml:"refresh_lifetime"` // of a refresh token; each use gives a new one
	LoginLifetime   time.Duration `yaml:"login_lifetime"`   // of all that comes of one login
	RefreshGrace    time.Duration `yaml:"refresh_grace"`    // a used refresh token is good once more
	CleanupInterval time.Duration `yaml:"cleanup_interval"` // the longest that something expired is kept
}

func defaultOAuth() OAuthConfig {
	l := oauth.DefaultLifetimes()
	return OAuthConfig{
		Port: 443, CodeLifetime: l.Code, AccessLifetime: l.Access, RefreshLifetime: l.Refresh, LoginLifetime: l.Absolute,
		RefreshGrace: l.Grace, CleanupInterval: time.Second,
	}
}

func (o OAuthConfig) lifetimes() oauth.Lifetimes {
	return oauth.Lifetimes{Code: o.CodeLifetime, Access: o.AccessLifetime, Refresh: o.RefreshLifetime, Absolute: o.LoginLifetime, Grace: o.RefreshGrace}
}

// validate checks what the types cannot.
func (o OAuthConfig) validate() error {
	var errs []error
	if o.Port < 1 || o.Port > 65535 {
		errs = append(errs, config.Invalid("oauth.port", fmt.Sprintf("%d is not a port", o.Port), "set the port that people reach this host at over HTTPS, or leave it out for 443"))
	}
	if err := o.lifetimes().Check(); err != nil {
		errs = append(errs, config.Invalid("oauth", err.Error(), "correct the lifetimes, or leave them out for the defaults"))
	}
	if o.CleanupInterval < 10*time.Millisecond || o.CleanupInterval > time.Hour {
		errs = append(errs, config.Invalid("oauth.cleanup_interval", fmt.Sprintf("%s is not between 10ms and 1h", o.CleanupInterval), "leave it out for the default of 1s"))
	}
	return errors.Join(errs...)
}

// AuthConfig is whose signed tokens of the platform's users are believed on organizations' host names.
type AuthConfig struct {
	Issuers []usertoken.Issuer `yaml:"issuers"`
}

// LoginConfig is the OpenID provider of the platform, where people in browsers log in.
type LoginConfig struct {
	Issuer           string        `yaml:"issuer"`             // empty: nobody can log in with a browser
	ClientID         string        `yaml:"client_id"`          // of all hosts of this cluster, at that provider
	ClientSecretFile string        `yaml:"client_secret_file"` // empty: the client is a public one
	Scopes           []string      `yaml:"scopes"`             // asked for beside openid
	UserClaim        string        `yaml:"user_claim"`         // the claim that names the user
	UserPrefix       string        `yaml:"user_prefix"`        // put before that name
	SessionLifetime  time.Duration `yaml:"session_lifetime"`   // how long a login lasts
}

func defaultLogin() LoginConfig {
	return LoginConfig{UserClaim: "sub", SessionLifetime: 12 * time.Hour}
}

// validate checks what the types cannot.
func (l LoginConfig) validate() error {
	var errs []error
	bad := func(key, message, remedy string) { errs = append(errs, config.Invalid("login."+key, message, remedy)) }
	if l.Issuer != "" {
		if err := usertoken.CheckURL(l.Issuer); err != nil {
			bad("issuer", err.Error(), "set the provider's https:// address; http:// is for loopback addresses only")
		}
		if l.ClientID == "" {
			bad("client_id", "it is not set", "register this cluster as a client of the provider, and set the id that it gave")
		}
	}
	if l.ClientSecretFile != "" && !filepath.IsAbs(l.ClientSecretFile) {
		bad("client_secret_file", fmt.Sprintf("%q is not an absolute path", l.ClientSecretFile), "set an absolute path")
	}
	if l.UserClaim == "" {
		bad("user_claim", "it is empty", "leave it out for sub")
	}
	if _, err := id.ParseUser(l.UserPrefix + "x"); err != nil {
		bad("user_prefix", fmt.Sprintf("%q cannot begin the name of a user", l.UserPrefix), "use characters of [A-Za-z0-9._@-], beginning with a letter or digit")
	}
	if l.SessionLifetime < time.Minute || l.SessionLifetime > 31*24*time.Hour {
		bad("session_lifetime", fmt.Sprintf("%s is not between 1m and 744h", l.SessionLifetime), "leave it out for the default of 12h")
	}
	return errors.Join(errs...)
}

// maxSecret bounds what is read of a file with a secret.
const maxSecret = 4 << 10

// open reads the secret.
func (l LoginConfig) open() (tenantapi.Login, error) {
	out := tenantapi.Login{
		Issuer: l.Issuer, ClientID: l.ClientID, Scopes: l.Scopes, UserClaim: l.UserClaim, UserPrefix: l.UserPrefix, Session: l.SessionLifetime,
	}
	if l.Issuer == "" || l.ClientSecretFile == "" {
		return out, nil
	}
	f, err := os.Open(l.ClientSecretFile)
	if err != nil {
		return out, fmt.Errorf("cannot read login.client_secret_file: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil {
		out.Secret, err = parseSecret(b)
	}
	if err != nil {
		return out, fmt.Errorf("cannot use %s as login.client_secret_file: %w", l.ClientSecretFile, err)
	}
	return out, nil
}

// parseSecret reads a file with a secret, which is one line.
func parseSecret(b []byte) (logging.Secret, error) {
	secret := strings.TrimSpace(string(b))
	switch {
	case secret == "":
		return logging.Secret{}, errors.New("it has no secret in it")
	case len(b) > maxSecret:
		return logging.Secret{}, fmt.Errorf("it has more than %d bytes: name the file with the secret alone", maxSecret)
	case strings.ContainsAny(secret, "\r\n\x00"):
		return logging.Secret{}, errors.New("it has more than one line: name the file with the secret alone")
	}
	return logging.NewSecret(secret), nil
}

// public is how people reach this host's nginx in a safe way: over HTTPS, or on this machine alone.
func (c *Config) public() tenantapi.Public {
	if len(c.Nginx.ListenTLS) > 0 || len(c.Nginx.TrustedProxies) > 0 {
		return tenantapi.Public{Scheme: "https", Port: c.OAuth.Port}
	}
	listen, err := addrPorts(c.Nginx.Listen)
	if err != nil || len(listen) == 0 {
		return tenantapi.Public{}
	}
	for _, a := range listen {
		if !a.Addr().Unmap().IsLoopback() {
			return tenantapi.Public{}
		}
	}
	return tenantapi.Public{Scheme: "http", Port: int(listen[0].Port())}
}
