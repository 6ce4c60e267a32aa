package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Backdate is how far before its making a certificate begins to be valid: a machine whose clock is slower
// by less accepts it at once.
const Backdate = 10 * time.Minute

// Lives of certificates.
const (
	DefaultRootLife = 10 * 365 * 24 * time.Hour
	MinRootLife     = 30 * 24 * time.Hour
	MaxRootLife     = 30 * 365 * 24 * time.Hour
	DefaultLeafLife = 72 * time.Hour
	MinLeafLife     = 24 * time.Hour // shorter, and a weekend without coordinators ends the cluster
	MaxLeafLife     = 90 * 24 * time.Hour
)

// Authority is a CA with its private key: what signs.
type Authority struct {
	root  Root
	key   *ecdsa.PrivateKey
	cross *x509.Certificate // this CA's key signed by the CA before it, during a rotation; or nil
}

// AuthorityOptions describe a new CA.
type AuthorityOptions struct {
	Cluster string        // required: its id
	Life    time.Duration // default: DefaultRootLife
	Now     time.Time     // required
}

// NewAuthority makes a CA for one cluster. The name constraint of its root binds it: a certificate for
// another cluster is worth nothing even if this key signs it.
func NewAuthority(o AuthorityOptions) (*Authority, error) {
	if err := checkCluster(o.Cluster); err != nil {
		return nil, err
	}
	if o.Life == 0 {
		o.Life = DefaultRootLife
	}
	if o.Life < MinRootLife || o.Life > MaxRootLife {
		return nil, fmt.Errorf("cannot make a CA that is valid for %s: want %s to %s", o.Life, MinRootLife, MaxRootLife)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make the key of the CA: %w", err)
	}
	serial := newSerial()
	template := caTemplate(o.Cluster, o.Now, o.Now.Add(o.Life))
	template.SerialNumber = serial
	template.MaxPathLen = 1 // a successor's cross-signed certificate, and nothing below it but leaves
	// The serial is in the name, so that two roots of one cluster are never taken for each other.
	template.Subject = pkix.Name{CommonName: fmt.Sprintf("Demiurge CA %x", serial.Bytes()[:4]), Organization: []string{o.Cluster}}
	return selfSigned(template, key)
}

func selfSigned(template *x509.Certificate, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := sign(template, template, key, &key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("cannot make the root of the CA: %w", err)
	}
	root, err := parseRoot(cert)
	if err != nil {
		return nil, err
	}
	return &Authority{root: root, key: key}, nil
}

// Root is the public half.
func (a *Authority) Root() Root { return a.root }

// RotateOptions describe a rotation.
type RotateOptions struct {
	Overlap time.Duration // required: how long the old root stays trusted
	Life    time.Duration // of the new root; default: DefaultRootLife
	Now     time.Time     // required
}

// Rotate makes the next CA and the bundle to give out. From then on the next one signs. Until the overlap
// ends certificates of both verify everywhere: those of the old one because the bundle still has its root,
// those of the new one also with members that do not have the new bundle yet, because the old CA signs the
// new one's key and that certificate travels with them.
func (a *Authority) Rotate(bundle Bundle, o RotateOptions) (*Authority, Bundle, error) {
	if bundle.Pin() != a.root.Pin() {
		return nil, Bundle{}, refuse(Mismatch, "cannot rotate the CA %s: the bundle says that %s signs now", a.root.Pin(), bundle.Pin())
	}
	if o.Overlap <= 0 || o.Overlap > MaxLeafLife {
		return nil, Bundle{}, fmt.Errorf("cannot rotate the CA with an overlap of %s: want more than 0 and at most %s", o.Overlap, MaxLeafLife)
	}
	next, err := NewAuthority(AuthorityOptions{Cluster: a.root.Cluster(), Life: o.Life, Now: o.Now})
	if err != nil {
		return nil, Bundle{}, err
	}
	until := earlier(o.Now.Add(o.Overlap), a.root.Expires())
	if until.After(o.Now) { // else the old CA is over, and nothing it signs would be accepted
		template := caTemplate(a.root.Cluster(), o.Now, until)
		template.SerialNumber = newSerial()
		template.Subject = next.root.cert.Subject
		template.MaxPathLenZero = true
		if next.cross, err = sign(template, a.root.cert, a.key, &next.key.PublicKey); err != nil {
			return nil, Bundle{}, fmt.Errorf("cannot sign the next CA: %w", err)
		}
	}
	after, err := bundle.Prune(o.Now).succeed(next.root, until)
	if err != nil {
		return nil, Bundle{}, err
	}
	return next, after, nil
}

// Grant says for whom a certificate is made. All of it comes from the coordinators' state, none of it from
// the request.
type Grant struct {
	Identity Identity      // required
	Life     time.Duration // default: DefaultLeafLife; MinLeafLife to MaxLeafLife, never beyond the root's
	Now      time.Time     // required
	// Hosts are DNS names and addresses for a coordinator, from its own configuration, so that ordinary
	// HTTPS clients of the API accept it. Nothing in this package looks at them.
	Hosts []string
}

// Issue answers a signing request. The answer is PEM: the certificate, then what chains it to the CA of
// before, while a rotation goes on.
func (a *Authority) Issue(request string, g Grant) (string, error) {
	if g.Identity.IsZero() {
		return "", refuse(Malformed, "cannot issue a certificate for nobody")
	}
	if g.Identity.Cluster() != a.root.Cluster() {
		return "", refuse(OtherCluster, "cannot issue a certificate for %s: this is the CA of cluster %s", g.Identity, a.root.Cluster())
	}
	if g.Life == 0 {
		g.Life = DefaultLeafLife
	}
	if g.Life < MinLeafLife || g.Life > MaxLeafLife {
		return "", fmt.Errorf("cannot issue a certificate that is valid for %s: want %s to %s", g.Life, MinLeafLife, MaxLeafLife)
	}
	if !g.Now.Before(a.root.Expires()) {
		return "", refuse(Expired, "cannot issue a certificate: the CA %s has expired on %s; rotate it", a.root.Pin(), stamp(a.root.Expires()))
	}
	public, err := parseRequest(request)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: g.Identity.Name(), OrganizationalUnit: []string{string(g.Identity.Role())}},
		NotBefore:    g.Now.Add(-Backdate),
		NotAfter:     earlier(g.Now.Add(g.Life), a.root.Expires()),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  roleUse[g.Identity.Role()],
		URIs:         uris(g.Identity), BasicConstraintsValid: true,
	}
	if err := addHosts(template, g); err != nil {
		return "", err
	}
	leaf, err := sign(template, a.root.cert, a.key, public)
	if err != nil {
		return "", fmt.Errorf("cannot issue a certificate for %s: %w", g.Identity, err)
	}
	chain := toPEM(blockCertificate, leaf.Raw)
	if a.cross != nil && g.Now.Before(a.cross.NotAfter) {
		chain += toPEM(blockCertificate, a.cross.Raw)
	}
	return chain, nil
}

// addHosts puts the names for ordinary HTTPS clients into a coordinator's certificate.
func addHosts(template *x509.Certificate, g Grant) error {
	if len(g.Hosts) > 0 && g.Identity.Role() != RoleCoordinator {
		return refuse(WrongRole, "cannot issue a certificate with host names for %s: only coordinators serve", g.Identity)
	}
	for _, host := range g.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		if _, err := id.ParseDomain(host); err != nil {
			return because(Malformed, err, "cannot issue a certificate for %s", g.Identity)
		}
		template.DNSNames = append(template.DNSNames, host)
	}
	return nil
}

// stored is how an Authority goes through Raft and into snapshots. Frozen by testdata.
type stored struct {
	Version     int    `json:"version"`
	Certificate string `json:"certificate"`
	Cross       string `json:"cross,omitempty"`
	SealedKey   []byte `json:"sealed_key"`
}

const storedVersion = 1

// Encode prints the CA with its private key sealed by the cluster key.
func (a *Authority) Encode(key Key) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the key of the CA: %w", err)
	}
	s := stored{Version: storedVersion, Certificate: toPEM(blockCertificate, a.root.cert.Raw)}
	if a.cross != nil {
		s.Cross = toPEM(blockCertificate, a.cross.Raw)
	}
	if s.SealedKey, err = Seal(key, a.root.sealContext(), der); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// DecodeAuthority reads what Encode printed, with the same cluster key.
func DecodeAuthority(data []byte, key Key) (*Authority, error) {
	var s stored
	var says struct{ Version int } // a later format may have more in it, and in other types
	if err := json.Unmarshal(data, &says); says.Version > storedVersion {
		return nil, refuse(Malformed, "cannot read the stored CA: it has format %d and this version reads %d; use the version that wrote it, or a newer one", says.Version, storedVersion)
	} else if err != nil || says.Version != storedVersion {
		return nil, because(Malformed, err, "cannot read the stored CA")
	}
	dec := json.NewDecoder(bytes.NewReader(data)) // one value and nothing else, as was just seen
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, because(Malformed, err, "cannot read the stored CA")
	}
	der, err := onePEM("the stored CA", blockCertificate, s.Certificate)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, because(Malformed, err, "cannot read the certificate of the stored CA")
	}
	a := &Authority{}
	if a.root, err = parseRoot(cert); err != nil {
		return nil, err
	}
	if a.cross, err = parseCross(s.Cross, a.root); err != nil {
		return nil, err
	}
	plain, err := Open(key, a.root.sealContext(), s.SealedKey)
	if err != nil {
		return nil, err
	}
	if a.key, err = parseKeyDER("the key of the stored CA", plain); err != nil {
		return nil, err
	}
	if !a.key.PublicKey.Equal(cert.PublicKey) {
		return nil, refuse(Mismatch, "cannot read the stored CA %s: its key belongs to another certificate", a.root.Pin())
	}
	return a, nil
}

// parseCross reads the certificate that the CA before made for this one.
func parseCross(text string, root Root) (*x509.Certificate, error) {
	if text == "" {
		return nil, nil
	}
	der, err := onePEM("the cross-signed certificate of the stored CA", blockCertificate, text)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil || !cert.IsCA || pinOf(cert) != root.Pin() {
		return nil, because(Malformed, err, "cannot read the cross-signed certificate of the stored CA %s", root.Pin())
	}
	return cert, nil
}

// sealContext binds a sealed private key to its certificate.
func (r Root) sealContext() string { return "authority/" + r.Pin().String() }

// caTemplate is what all certificates of CAs have in common.
func caTemplate(cluster string, now, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		NotBefore: now.Add(-Backdate), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, // of all name constraints, despite its name
		PermittedURIDomains:         []string{cluster},
	}
}

func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, public any) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial is 128 random bits, never zero (RFC 5280, section 4.1.2.2).
func newSerial() *big.Int {
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	raw[0] |= 0x40 // of a fixed length, so that its first bytes can be shown
	return new(big.Int).SetBytes(raw[:])
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
