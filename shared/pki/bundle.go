package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"slices"
	"strings"
	"time"
)

// Root is the public half of a CA. Only this package makes one, so each is self-signed, bound to one cluster
// by its name constraint, and has a P-256 key.
type Root struct {
	cert         *x509.Certificate
	trustedUntil time.Time
}

// parseRoot checks that a certificate is a root as Authority makes them.
func parseRoot(cert *x509.Certificate) (Root, error) {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return Root{}, refuse(WeakKey, "cannot trust the CA %q: its key is not an ECDSA key on P-256", short(cert.Subject.CommonName))
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign ||
		!cert.PermittedDNSDomainsCritical || len(cert.PermittedURIDomains) != 1 || checkCluster(cert.PermittedURIDomains[0]) != nil {
		return Root{}, refuse(Malformed, "cannot trust the certificate of %q as a CA: it is not the root of a cluster; use the ca.pem that the cluster gave out", short(cert.Subject.CommonName))
	}
	// A trust anchor's own signature is not looked at by x509: without this, constraints and life of a root
	// could be rewritten around the same public key and the same pin.
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return Root{}, because(Malformed, err, "cannot trust the CA %q: it has not signed itself", short(cert.Subject.CommonName))
	}
	return Root{cert: cert}, nil
}

// Cluster is the id of the cluster that the root is for.
func (r Root) Cluster() string { return r.cert.PermittedURIDomains[0] }

// Pin names the root, for join tokens.
func (r Root) Pin() Pin { return pinOf(r.cert) }

// Expires is when the root's own life ends.
func (r Root) Expires() time.Time { return r.cert.NotAfter }

// TrustedUntil is when the root is no longer trusted: the end of its overlap with its successor, or of its
// life.
func (r Root) TrustedUntil() time.Time {
	if r.trustedUntil.IsZero() || r.trustedUntil.After(r.cert.NotAfter) {
		return r.cert.NotAfter
	}
	return r.trustedUntil
}

// trusted reports whether the root counts now. Its beginning is left to the verification of the chain,
// which can say so in words.
func (r Root) trusted(now time.Time) bool {
	return r.trustedUntil.IsZero() || now.Before(r.trustedUntil)
}

func (r Root) equal(o Root) bool {
	return r.cert.Equal(o.cert) && r.trustedUntil.Equal(o.trustedUntil)
}

// Bundle is the roots that a cluster trusts: the one that signs now first, then those of before until their
// overlap ends. It is immutable; the zero Bundle trusts nobody.
type Bundle struct{ roots []Root }

// maxRoots bounds a bundle. More than two at a time means a rotation that began before the last one ended.
const maxRoots = 8

const noteUntil = "Trusted-Until: "

// NewBundle trusts one root.
func NewBundle(root Root) Bundle { return Bundle{roots: []Root{root}} }

// newBundle checks what holds for every bundle.
func newBundle(roots []Root) (Bundle, error) {
	if len(roots) == 0 || len(roots) > maxRoots {
		return Bundle{}, refuse(Malformed, "cannot use a CA bundle with %d roots: want 1 to %d", len(roots), maxRoots)
	}
	if !roots[0].trustedUntil.IsZero() {
		return Bundle{}, refuse(Malformed, "cannot use a CA bundle whose first root, the one that signs, has an end of trust; only older ones have one")
	}
	for n, r := range roots {
		if r.Cluster() != roots[0].Cluster() {
			return Bundle{}, refuse(OtherCluster, "cannot use a CA bundle of two clusters, %s and %s", roots[0].Cluster(), r.Cluster())
		}
		if slices.ContainsFunc(roots[:n], func(o Root) bool { return o.Pin() == r.Pin() }) {
			return Bundle{}, refuse(Malformed, "cannot use a CA bundle that has the CA %s twice", r.Pin())
		}
	}
	return Bundle{roots: slices.Clone(roots)}, nil
}

// ParseBundle reads what PEM printed. Empty lines and lines that begin with # are allowed between the
// blocks.
func ParseBundle(text string) (Bundle, error) {
	sections, err := splitPEM("the CA bundle", blockCertificate, text)
	if err != nil {
		return Bundle{}, err
	}
	var roots []Root
	for n, s := range sections {
		cert, err := x509.ParseCertificate(s.der)
		if err != nil {
			return Bundle{}, because(Malformed, err, "cannot read the CA bundle: its certificate %d is damaged", n+1)
		}
		root, err := parseRoot(cert)
		if err != nil {
			return Bundle{}, err
		}
		for _, note := range s.notes {
			value, ok := strings.CutPrefix(note, noteUntil)
			if !ok && strings.HasPrefix(note, "#") {
				continue
			}
			until, err := time.Parse(time.RFC3339, value)
			if !ok || err != nil || !root.trustedUntil.IsZero() || until.IsZero() {
				return Bundle{}, refuse(Malformed, "cannot read the CA bundle: the line %q before certificate %d means nothing; want at most one %s<RFC 3339 time>", short(note), n+1, noteUntil)
			}
			root.trustedUntil = until.UTC()
		}
		roots = append(roots, root)
	}
	return newBundle(roots)
}

// PEM prints the bundle. Every tool that reads certificates reads it; the end of an overlap stands in a
// line of text before the block, where such tools do not look.
func (b Bundle) PEM() string {
	var out strings.Builder
	for _, r := range b.roots {
		if !r.trustedUntil.IsZero() {
			out.WriteString(noteUntil + r.trustedUntil.Format(time.RFC3339) + "\n")
		}
		out.WriteString(toPEM(blockCertificate, r.cert.Raw))
	}
	return out.String()
}

// IsZero reports whether the bundle trusts nobody.
func (b Bundle) IsZero() bool { return len(b.roots) == 0 }

// Roots lists the roots, the one that signs first.
func (b Bundle) Roots() []Root { return slices.Clone(b.roots) }

// Cluster is the cluster of all its roots.
func (b Bundle) Cluster() string {
	if b.IsZero() {
		return ""
	}
	return b.roots[0].Cluster()
}

// Pin names the root that signs now.
func (b Bundle) Pin() Pin {
	if b.IsZero() {
		return Pin{}
	}
	return b.roots[0].Pin()
}

// Has reports whether a root with the pin is trusted now.
func (b Bundle) Has(pin Pin, now time.Time) bool {
	return slices.ContainsFunc(b.roots, func(r Root) bool { return r.Pin() == pin && r.trusted(now) })
}

// Equal reports whether two bundles trust the same roots for the same time, in the same order.
func (b Bundle) Equal(o Bundle) bool { return slices.EqualFunc(b.roots, o.roots, Root.equal) }

// Prune drops the roots that are no longer trusted. The one that signs stays whatever its age.
func (b Bundle) Prune(now time.Time) Bundle {
	roots := slices.Clone(b.roots)
	if len(roots) > 1 {
		roots = slices.Concat(roots[:1], slices.DeleteFunc(slices.Clone(roots[1:]), func(r Root) bool { return !now.Before(r.TrustedUntil()) }))
	}
	return Bundle{roots: roots}
}

// succeed puts a new root first and ends the trust in the others no later than until.
func (b Bundle) succeed(next Root, until time.Time) (Bundle, error) {
	roots := []Root{next}
	for _, r := range b.roots {
		if r.trustedUntil.IsZero() || r.trustedUntil.After(until) {
			r.trustedUntil = until.UTC().Truncate(time.Second)
		}
		roots = append(roots, r)
	}
	return newBundle(roots)
}

// anchors are the roots to verify a chain with.
func (b Bundle) anchors(now time.Time) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, r := range b.roots {
		if r.trusted(now) {
			pool.AddCert(r.cert)
		}
	}
	return pool
}
