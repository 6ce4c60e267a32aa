package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// verify is the one decision about a certificate: who it is for, if it counts now. chain is what was
// presented, the leaf first.
func verify(chain []*x509.Certificate, bundle Bundle, use x509.ExtKeyUsage, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, refuse(NoCertificate, "cannot accept a peer without a certificate: join it to the cluster first")
	}
	if bundle.IsZero() {
		return Identity{}, refuse(OtherCA, "cannot accept any certificate: no CA is trusted here")
	}
	leaf := chain[0]
	who, err := identityOf(leaf)
	if err != nil {
		return Identity{}, err
	}
	if err := checkStrength(leaf.PublicKey); err != nil {
		return Identity{}, err
	}
	// Signatures first, at a moment of the leaf's life, then the life: "expired" shall be said only of a
	// certificate that is genuine.
	if err := verifyChain(chain, who, bundle, use, within(leaf, now), now); err != nil {
		return Identity{}, err
	}
	if err := checkLife(leaf, who, now); err != nil {
		return Identity{}, err
	}
	if who.Cluster() != bundle.Cluster() {
		return Identity{}, otherCluster(who, bundle)
	}
	return who, nil
}

// verifyChain looks for a way from the leaf to a root that is trusted now.
func verifyChain(chain []*x509.Certificate, who Identity, bundle Bundle, use x509.ExtKeyUsage, at, now time.Time) error {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: bundle.anchors(now), Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use},
	})
	if err == nil {
		return nil
	}
	var invalid x509.CertificateInvalidError
	switch {
	case who.Cluster() != bundle.Cluster():
		return otherCluster(who, bundle)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return because(WrongRole, err, "cannot accept %s here: the certificate of a %s is not for this use", who, who.Role())
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && !now.Before(invalid.Cert.NotAfter):
		return because(Expired, err, "cannot accept the certificate of %s: that of its CA %s ended on %s; rotate the CA, or, if it was rotated, give the newer CA bundle to this side (join again)",
			who, pinOf(invalid.Cert), stamp(invalid.Cert.NotAfter))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return because(NotYetValid, err, "cannot accept the certificate of %s: its CA is not valid before %s and the clock here says %s; set the clocks (NTP)",
			who, stamp(invalid.Cert.NotBefore), stamp(now))
	}
	return because(OtherCA, err, "cannot accept the certificate of %s: no CA that is trusted here (%s signs now) has signed it; give the program a certificate of this cluster, or the newer CA bundle to this side", who, bundle.Pin())
}

func otherCluster(who Identity, bundle Bundle) error {
	return refuse(OtherCluster, "cannot accept %s: it is of cluster %s and this is cluster %s; correct the addresses that it dials, or join it here", who, who.Cluster(), bundle.Cluster())
}

// within is now, or the nearest moment at which the leaf is valid.
func within(leaf *x509.Certificate, now time.Time) time.Time {
	if now.Before(leaf.NotBefore) {
		return leaf.NotBefore
	}
	return earlier(now, leaf.NotAfter)
}

// checkLife says of a genuine certificate whether it counts now.
func checkLife(leaf *x509.Certificate, who Identity, now time.Time) error {
	if now.Before(leaf.NotBefore) {
		return refuse(NotYetValid, "cannot accept the certificate of %s: it is valid from %s and the clock here says %s; the clocks differ by more than %s: set them (NTP)",
			who, stamp(leaf.NotBefore), stamp(now), Backdate)
	}
	if now.After(leaf.NotAfter) {
		return refuse(Expired, "cannot accept the certificate of %s: it has expired on %s and the clock here says %s; join again with a new token, or set the clock (NTP)",
			who, stamp(leaf.NotAfter), stamp(now))
	}
	return nil
}

// sameIdentity refuses any identity but want, and says which part differs.
func sameIdentity(got, want Identity) error {
	switch {
	case got == want:
		return nil
	case got.Cluster() != want.Cluster():
		return refuse(OtherCluster, "cannot use a certificate of cluster %s: this is %s", got.Cluster(), want)
	case got.Role() != want.Role():
		return refuse(WrongRole, "cannot use a certificate of %s: this is %s; use the token or certificate that was made for it", got, want)
	}
	return refuse(WrongName, "cannot use a certificate of %s: this is %s; use the token or certificate that was made for it", got, want)
}

// Peer says whom a connection may be with. The cluster is always the own one.
type Peer struct {
	Roles []Role // required: one of these
	Name  string // exactly this host or node; empty: any of the roles
	// Anonymous lets a server's caller come without a certificate, for listeners where tokens count too.
	// One that is presented must be right all the same.
	Anonymous bool
}

// check reports whether somebody who was verified is the one that is wanted.
func (p Peer) check(who Identity) error {
	if !slices.Contains(p.Roles, who.Role()) {
		return refuse(WrongRole, "cannot accept %s here: want %s; only programs of that role may use this connection", who, oneOf(p.Roles))
	}
	if p.Name != "" && who.Name() != p.Name {
		return refuse(WrongName, "cannot accept %s here: want the %s %q; the address leads to another one, or two programs have one address", who, oneOf(p.Roles), p.Name)
	}
	return nil
}

func oneOf(roles []Role) string {
	text := ""
	for n, r := range roles {
		if n > 0 {
			text += " or "
		}
		text += string(r)
	}
	return text
}

// PeerOf is who is at the other end of a connection that was made with a configuration of Live; false for a
// caller without a certificate. It must not be asked about any other connection: it reads and does not
// verify, because the handshake did.
func PeerOf(state *tls.ConnectionState) (Identity, bool) {
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return Identity{}, false
	}
	who, err := identityOf(state.PeerCertificates[0])
	return who, err == nil
}
