package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"time"
)

// RenewAt says when to ask for a new certificate: at two thirds of its life, or earlier by up to a tenth of
// it. The jitter comes from the certificate itself, so that hosts that joined together do not renew
// together, and a restart does not roll the dice again.
//
// A certificate that another root signed than the one that signs now (a rotation goes on) is renewed in the
// first half of what is left of its own root's overlap.
func RenewAt(leaf *x509.Certificate, bundle Bundle) time.Time {
	issued := leaf.NotBefore.Add(Backdate)
	life := leaf.NotAfter.Sub(issued)
	at := issued.Add(life * 2 / 3).Add(-fraction(life/10, leaf))
	if len(bundle.roots) == 0 {
		return at
	}
	for _, r := range bundle.roots[1:] {
		if leaf.CheckSignatureFrom(r.cert) == nil {
			began := bundle.roots[0].cert.NotBefore.Add(Backdate)
			return earlier(at, began.Add(fraction(r.TrustedUntil().Sub(began)/2, leaf)))
		}
	}
	return at
}

// fraction is a part of d in [0, d) that is the certificate's own.
func fraction(d time.Duration, leaf *x509.Certificate) time.Duration {
	if d <= 0 {
		return 0
	}
	sum := sha256.Sum256(leaf.Raw)
	return time.Duration(float64(d) * (float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32)))
}
