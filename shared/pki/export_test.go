package pki

import (
	"crypto/x509"
	"testing"
)

// Forge signs whatever a test wants with the CA's key, past every check of Issue.
func (a *Authority) Forge(t testing.TB, template *x509.Certificate, public any) string {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = newSerial()
	}
	cert, err := sign(template, a.root.cert, a.key, public)
	if err != nil {
		t.Fatal(err)
	}
	return toPEM(blockCertificate, cert.Raw)
}

// Certificate is the root itself.
func (r Root) Certificate() *x509.Certificate { return r.cert }

// Chain is PEM of all that is presented by a client.
func (c *Credentials) Chain(t testing.TB) string {
	t.Helper()
	_, text, _, err := c.texts()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Unchecked makes credentials of parts that need not fit, as an attacker has them.
func Unchecked(t testing.TB, e *Enrolment, certificate string, bundle Bundle) *Credentials {
	t.Helper()
	chain, err := chainPEM("a test's certificate", certificate)
	if err != nil {
		t.Fatal(err)
	}
	who, err := identityOf(chain[0])
	if err != nil {
		who = Identity{cluster: bundle.Cluster(), role: RoleCoordinator, name: "forged"}
	}
	return &Credentials{identity: who, chain: chain, key: e.key, bundle: bundle}
}

// Fits reports whether the certificate is for the private key.
func (c *Credentials) Fits() bool { return c.key.PublicKey.Equal(c.chain[0].PublicKey) }

// ParseAnswer reads the answer to a join.
var ParseAnswer = parseAnswer

// Public is the key that the enrolment asks a certificate for.
func (e *Enrolment) Public() any { return &e.key.PublicKey }
