package nginx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// selfSigned makes key and certificate for names in one PEM.
func selfSigned(t testing.TB, names ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	return out.Bytes()
}

// certify gives a host a wildcard certificate and an HTTPS listener; call it before anything starts.
func certify(t testing.TB, h *host) {
	t.Helper()
	h.opts.CertificateFile = filepath.Join(filepath.Dir(h.opts.DataDir), "wildcard.pem")
	if err := os.WriteFile(h.opts.CertificateFile, selfSigned(t, "*."+domain), 0o600); err != nil {
		t.Fatal(err)
	}
	h.opts.ListenTLS = []netip.AddrPort{freePort(t)}
}

// shown makes a handshake for a name and returns the certificate that nginx shows.
func (h *host) shown(name string) *x509.Certificate {
	conn, err := tls.Dial("tcp", h.opts.ListenTLS[0].String(), &tls.Config{InsecureSkipVerify: true, ServerName: name})
	if err != nil {
		return &x509.Certificate{}
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0]
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	certify(t, h)
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	h.apply(slots(g))
	org := id.NewOrganization()
	h.route(org, g, 4)
	h.mustServe(org, g, 4)

	t.Run("HTTP/2", func(t *testing.T) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: orgHost(org)}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequest(http.MethodGet, "https://"+h.opts.ListenTLS[0].String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = orgHost(org)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.ProtoMajor != 2 || resp.StatusCode != 200 || resp.Header.Get(api.HeaderGateway) != string(g.id) {
			t.Errorf("%s %d %v", resp.Proto, resp.StatusCode, resp.Header)
		}
	})

	t.Run("a renewed certificate is taken up", func(t *testing.T) {
		next := selfSigned(t, "*."+domain, "renewed.test")
		temp := h.opts.CertificateFile + ".new"
		if err := os.WriteFile(temp, next, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, h.opts.CertificateFile); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nginx shows the new certificate", func() bool { return h.shown(orgHost(org)).VerifyHostname("renewed.test") == nil })
	})

	t.Run("own certificate, refused, named by nginx, corrected", func(t *testing.T) {
		cfg := slots(g)
		cfg.Sites = []Site{{Organization: org, Domains: []string{"shop.own.test"}, Certificate: true}}
		h.engine.SetConfig(cfg)
		eventually(t, "the site without certificate is quarantined with nginx's words", func() bool {
			q := h.engine.Status().Quarantined
			return len(q) == 1 && q[0].Part == "site/"+string(org) && strings.Contains(q[0].Message, "cannot load certificate")
		})
		h.mustServe(org, g, 4)
		if err := h.engine.SetCertificate(org, []byte("nonsense")); err == nil {
			t.Error("nonsense is accepted as a certificate")
		}
		if err := h.engine.SetCertificate(org, selfSigned(t, "shop.own.test")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the site shows its own certificate", func() bool { return h.shown("shop.own.test").VerifyHostname("shop.own.test") == nil })
		if len(h.engine.Status().Quarantined) != 0 {
			t.Errorf("still quarantined: %+v", h.engine.Status().Quarantined)
		}
	})
	h.settled()
	h.clean()
}

// TestACertificateBehindALinkIsTakenUp: what renews certificates often switches a link to a directory, and leaves
// every file as it is.
func TestACertificateBehindALinkIsTakenUp(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	certify(t, h)
	dir := filepath.Dir(h.opts.CertificateFile)
	for _, name := range []string{"first.test", "second.test"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "site.pem"), selfSigned(t, "*."+domain, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	current := filepath.Join(dir, "current")
	switchTo := func(name string) {
		t.Helper()
		if err := errors.Join(os.Symlink(name, current+".new"), os.Rename(current+".new", current)); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(name string) {
		t.Helper()
		eventually(t, "nginx shows the certificate of "+name, func() bool { return h.shown("x."+domain).VerifyHostname(name) == nil })
	}
	switchTo("first.test")
	h.opts.CertificateFile = filepath.Join(current, "site.pem")
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	h.apply(slots(g))
	shows("first.test")
	switchTo("second.test")
	shows("second.test")
	h.settled()
	h.stopEngine()

	// Above, something else may have had the engine look.
	t.Run("the switch alone is seen", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		e := &Engine{opts: h.opts, log: testLogger(), wake: make(chan struct{}, 1)}
		go func() {
			defer close(ended)
			e.watchCertificate(ctx)
		}()
		defer func() { cancel(); <-ended }()
		<-e.wake // it watches now
		switchTo("first.test")
		select {
		case <-e.wake:
		case <-within(t).Done():
			t.Error("nothing was noticed")
		}
	})

	// An engine without the certificate's directory looks after the rest.
	if err := os.Remove(current); err != nil {
		t.Fatal(err)
	}
	h.startEngine()
	org := id.NewOrganization()
	h.route(org, g, 4)
	h.mustServe(org, g, 4)
	shows("second.test")
	h.engine.SetConfig(slots(g)) // which cannot be taken up now
	eventually(t, "the engine says what is missing", func() bool { return strings.Contains(h.engine.Status().LastError, "cannot load certificate") })
	switchTo("first.test")
	shows("first.test")
	h.settled()
}
