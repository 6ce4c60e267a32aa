package nginx

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// listenerClient talks to nginx the way the world does: through its real listeners, with an
// organization's name. Connections are kept, whatever name they were made for.
type listenerClient struct {
	opts Options
	http *http.Client
	tls  *tls.Config
}

func newListenerClient(o Options) *listenerClient {
	// The connection does not leave the host. Which certificate nginx shows is checked by the canary.
	conf := &tls.Config{InsecureSkipVerify: true, ServerName: "org-" + nobody + "." + o.Domain} //nolint:gosec // see above
	c := &listenerClient{opts: o, tls: conf}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	c.http = &http.Client{
		Transport: &straight{dial: dialer.DialContext, other: &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: mostKept, IdleConnTimeout: keptFor, DisableCompression: true,
			TLSClientConfig: conf,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// listener is one address that a generation listens on.
type listener struct {
	addr netip.AddrPort
	tls  bool
}

// base is the URL of a listener as this host reaches it.
func (l listener) base() string {
	if l.tls {
		return "https://" + reachable(l.addr)
	}
	return "http://" + reachable(l.addr)
}

func (c *listenerClient) close() { c.http.CloseIdleConnections() }

// reachable is where this host reaches a listener.
func reachable(a netip.AddrPort) string {
	addr := a.Addr()
	if addr.IsUnspecified() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if a.Addr().Is6() {
			addr = netip.IPv6Loopback()
		}
	}
	return netip.AddrPortFrom(addr, a.Port()).String()
}

func (c *listenerClient) get(ctx context.Context, base, host, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot ask nginx for %q: %w", path, err)
	}
	req.Host = host
	return c.http.Do(req)
}

// nobody is a UUID that no organization has: version and variant are wrong.
const nobody = "00000000-0000-0000-0000-000000000000"

// unrouted is what the proof location answers, as status and text, when the name leads nowhere.
const unrouted = "503"

// routeOf asks nginx where a name leads: "gateway epoch", or unrouted.
func (c *listenerClient) routeOf(ctx context.Context, base string, org id.Organization) (string, error) {
	resp, err := c.get(ctx, base, id.Hostname(org, c.opts.Domain), "/-/route")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		return strings.TrimSpace(string(b)), nil
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		return unrouted, nil
	}
	return "", &wrongAnswer{fmt.Sprintf("nginx answers %d for the name of organization %s", resp.StatusCode, org)}
}

// wrongAnswer is an answer that says that the configuration is wrong, unlike no answer.
type wrongAnswer struct{ text string }

func (w *wrongAnswer) Error() string { return w.text }

// Get sends a request through the real listener under the organization's name. The caller closes the
// body. Redirects are not followed.
func (e *Engine) Get(ctx context.Context, org id.Organization, path string) (*http.Response, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("cannot ask nginx for %q: the path must begin with /", path)
	}
	return e.web.get(ctx, e.base(), id.Hostname(org, e.opts.Domain), path)
}

// base is where routes are proven: the first listener of the live generation, which need not be the
// first of the options yet.
func (e *Engine) base() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.st.base
}

// canarySample is how many routes are tried through every listener before a generation counts as live.
const canarySample = 4

// canary asks the real listeners what the generation is for: a name of our domain that has no route, so
// that a host pattern which matches nothing is seen, and some that have one.
func (e *Engine) canary(ctx context.Context, files tree) error {
	sample := append([]id.Organization{nobody}, e.routes.sample(canarySample)...)
	for _, l := range listeners(files) {
		if l.tls {
			if err := e.web.checkCertificate(ctx, reachable(l.addr)); err != nil {
				return err
			}
		}
		for _, org := range sample {
			if err := e.tryRoute(ctx, l.base(), org); err != nil {
				return err
			}
		}
	}
	return nil
}

// tryRoute compares nginx's answer for one organization with the table while nobody changes it.
func (e *Engine) tryRoute(ctx context.Context, base string, org id.Organization) error {
	unlock, err := e.routes.locks.lock(ctx, org)
	if err != nil {
		return err
	}
	defer unlock()
	want := unrouted
	if t, ok := e.routes.get(org); ok {
		want = proofText(t)
	}
	got, err := e.web.routeOf(ctx, base, org)
	if err != nil {
		return err
	}
	if got != want {
		return &wrongAnswer{fmt.Sprintf("%s answers %q for the name of organization %s instead of %q", base, fault.Shorten(got), org, want)}
	}
	return nil
}

// checkCertificate makes a handshake and compares the certificate with the configured file.
func (c *listenerClient) checkCertificate(ctx context.Context, address string) error {
	want, err := leafOf(c.opts.CertificateFile)
	if err != nil {
		return err
	}
	d := tls.Dialer{Config: c.tls.Clone()}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("cannot make a TLS handshake with %s: %w", address, err)
	}
	defer func() { _ = conn.Close() }()
	shown := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if len(shown) == 0 || !bytes.Equal(shown[0].Raw, want.Raw) {
		return &wrongAnswer{fmt.Sprintf("%s shows another certificate than the one in %s", address, c.opts.CertificateFile)}
	}
	if err := want.VerifyHostname(d.Config.ServerName); err != nil {
		return &wrongAnswer{err.Error()}
	}
	return nil
}

func leafOf(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate file: %w", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("cannot find a certificate in " + path)
}

// SetCertificate stores an organization's own key and chain (PEM) for a Site with Certificate set, and
// lets Run take it up. The file is replaced whole: no handshake sees half of it.
func (e *Engine) SetCertificate(org id.Organization, keyAndChain []byte) error {
	if _, err := id.ParseOrganization(string(org)); err != nil {
		return err
	}
	if _, err := tls.X509KeyPair(keyAndChain, keyAndChain); err != nil {
		return fmt.Errorf("cannot use the certificate of organization %s: %w", org, err)
	}
	if err := fsx.WriteAtomic(e.fs, "nginx.certificate", e.l.certificate(org), keyAndChain, 0o600); err != nil {
		return fmt.Errorf("cannot store the certificate of organization %s: %w", org, err)
	}
	e.poke()
	return nil
}
