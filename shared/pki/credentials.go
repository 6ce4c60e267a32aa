package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Credentials are what one program presents and whom it accepts: its certificate, its private key and the
// bundle of its cluster. They are whole, match, and never change; Live replaces them.
type Credentials struct {
	identity Identity
	chain    []*x509.Certificate // the leaf first, then what chains it to an older root
	key      *ecdsa.PrivateKey
	bundle   Bundle
}

// newCredentials checks that the parts belong together and count now.
func newCredentials(certificate string, key *ecdsa.PrivateKey, bundle Bundle, now time.Time) (*Credentials, error) {
	chain, err := chainPEM("the certificate", certificate)
	if err != nil {
		return nil, err
	}
	c := &Credentials{chain: chain, key: key, bundle: bundle}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, refuse(Mismatch, "cannot use the certificate of %q: it is for another private key than the one given; take both from the same place, or join again", short(chain[0].Subject.CommonName))
	}
	// A coordinator's certificate is good for both uses; whichever use a role has, it has that of a client.
	if c.identity, err = verify(chain, bundle, x509.ExtKeyUsageClientAuth, now); err != nil {
		return nil, err
	}
	return c, nil
}

// Identity is who the program is.
func (c *Credentials) Identity() Identity { return c.identity }

// Bundle is whom the program trusts.
func (c *Credentials) Bundle() Bundle { return c.bundle }

// WithBundle is the same certificate with another bundle, as during a rotation.
func (c *Credentials) WithBundle(bundle Bundle, now time.Time) (*Credentials, error) {
	if _, err := verify(c.chain, bundle, x509.ExtKeyUsageClientAuth, now); err != nil {
		return nil, err
	}
	next := *c
	next.bundle = bundle
	return &next, nil
}

// Leaf is the program's own certificate. It must not be changed.
func (c *Credentials) Leaf() *x509.Certificate { return c.chain[0] }

// Expires is when the certificate ends.
func (c *Credentials) Expires() time.Time { return c.chain[0].NotAfter }

// RenewAt is when to ask for a new certificate.
func (c *Credentials) RenewAt() time.Time { return RenewAt(c.chain[0], c.bundle) }

// String says who it is and shows no key.
func (c *Credentials) String() string {
	return fmt.Sprintf("%s until %s", c.identity, stamp(c.Expires()))
}

// GoString keeps the key out of %#v.
func (c *Credentials) GoString() string { return c.String() }

// texts are the three files.
func (c *Credentials) texts() (ca, certificate, key string, err error) {
	for _, cert := range c.chain {
		certificate += toPEM(blockCertificate, cert.Raw)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return "", "", "", fmt.Errorf("cannot encode the private key of %s: %w", c.identity, err)
	}
	return c.bundle.PEM(), certificate, toPEM(blockKey, der), nil
}

// forTLS is the certificate as crypto/tls presents it. With roots, they ride along behind it (RFC 8446,
// section 4.4.2 lets them be left out), so that a joining host can compare them with its pin.
func (c *Credentials) forTLS(roots bool) *tls.Certificate {
	out := &tls.Certificate{PrivateKey: c.key, Leaf: c.chain[0]}
	for _, cert := range c.chain {
		out.Certificate = append(out.Certificate, cert.Raw)
	}
	if roots {
		for _, r := range c.bundle.roots {
			out.Certificate = append(out.Certificate, r.cert.Raw)
		}
	}
	return out
}

// Equal reports whether both present and trust the same.
func (c *Credentials) Equal(o *Credentials) bool {
	return c.key.Equal(o.key) && slices.EqualFunc(c.chain, o.chain, (*x509.Certificate).Equal) && c.bundle.Equal(o.bundle)
}
