// Package client is the typed client of the coordinator's HTTP API. It knows several addresses, waits out
// a missing leader within the caller's context, and gives every refusal back as a *fault.Error with the
// code that the coordinator sent.
package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Options of a Client.
type Options struct {
	// Addresses of the coordinators, such as "https://10.0.0.1:7400"; without a scheme http is used for
	// loopback and https for everything else. Any coordinator answers every call.
	Addresses []string
	// Token is the API token's secret; empty for the calls that need none.
	Token string
	// CACert is the path of the PEM file with the CA of the coordinators; empty: the system's CAs.
	CACert string
	// TLS is how to speak https, in the place of CACert: pki.Live makes it for a program with a certificate
	// of its own.
	TLS *tls.Config
	// HTTPClient replaces the client's own; CACert and TLS are then not used.
	HTTPClient *http.Client
	// RetryFor is how long a coordinator without leader is asked again when the context has no earlier
	// end; default 10 s, negative: not at all.
	RetryFor time.Duration
	// Probe is how long a coordinator that has not answered lately may take to say that it is there, before it
	// gets a call: one that hangs is then passed over like one that is gone. The only one may take five times as
	// long, because there is nobody else to ask. 0: it is not asked.
	Probe time.Duration
}

// Client speaks to the coordinators. It is safe for concurrent use.
type Client struct {
	bases    []*url.URL
	token    string
	http     *http.Client
	retryFor time.Duration
	probe    time.Duration
	// answered is when each of bases answered last, in nanoseconds since 1970.
	answered []atomic.Int64
	// preferred is the index in bases of the coordinator that answered last.
	preferred atomic.Uint32
}

// defaultRetryFor covers the election of a leader with the slow timer profile.
const defaultRetryFor = 10 * time.Second

// New checks the options and makes a Client. It does not connect.
func New(opts Options) (*Client, error) {
	if len(opts.Addresses) == 0 {
		return nil, errors.New("cannot make a client: no coordinator address is given")
	}
	c := &Client{token: opts.Token, http: opts.HTTPClient, retryFor: opts.RetryFor, probe: opts.Probe}
	for _, a := range opts.Addresses {
		u, err := parseAddress(a)
		if err != nil {
			return nil, err
		}
		c.bases = append(c.bases, u)
	}
	c.answered = make([]atomic.Int64, len(c.bases))
	if strings.ContainsAny(opts.Token, " \t\r\n") {
		return nil, errors.New("cannot use the token: it contains white space")
	}
	if c.retryFor == 0 {
		c.retryFor = defaultRetryFor
	}
	if c.http == nil {
		transport, err := newTransport(opts.CACert, opts.TLS)
		if err != nil {
			return nil, err
		}
		c.http = &http.Client{Transport: transport}
	}
	return c, nil
}

// parseAddress reads an address with or without a scheme.
func parseAddress(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(s, "://") {
		host := s
		if h, _, err := net.SplitHostPort(s); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if host == "localhost" || ip != nil && ip.IsLoopback() {
			full = "http://" + s
		} else {
			full = "https://" + s
		}
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fmt.Errorf("cannot use %.200q as coordinator address: want a URL such as \"https://10.0.0.1:7400\"", s)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// newTransport makes a transport that keeps enough idle connections for a load generator.
func newTransport(caCert string, conf *tls.Config) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		MaxIdleConns:          1024,
		MaxIdleConnsPerHost:   512,
		IdleConnTimeout:       60 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	if conf != nil {
		t.TLSClientConfig, t.ForceAttemptHTTP2 = conf, slices.Contains(conf.NextProtos, "h2")
		return t, nil
	}
	if caCert == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caCert)
	if err != nil {
		return nil, fmt.Errorf("cannot read the CA certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot use %s as CA certificate: no PEM certificate is in it", caCert)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// Addresses lists the coordinators that this client asks.
func (c *Client) Addresses() []string {
	out := make([]string, len(c.bases))
	for i, b := range c.bases {
		out[i] = b.String()
	}
	return out
}
