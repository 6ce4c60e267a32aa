package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// requestWith is a signing request with whatever a caller likes to say of himself.
func requestWith(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) string {
	t.Helper()
	der := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, template, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// first reads the first certificate of a PEM text.
func first(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM: %q", text)
	}
	return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

func TestIssueTakesOnlyTheKeyFromARequest(t *testing.T) {
	ca, key := authority(t, clusterA), p256(t)
	other := identity(t, clusterA, pki.RoleCoordinator, "c1")
	request := requestWith(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "c1", OrganizationalUnit: []string{"coordinator"}}, DNSNames: []string{"c1.example.org"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, EmailAddresses: []string{"c1@example.org"},
		URIs: []*url.URL{must[*url.URL](t)(url.Parse(other.String()))},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // a CA, please
			{Id: []int{2, 5, 29, 37}, Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}},
		},
	})
	who := identity(t, clusterA, pki.RoleAgent, "host-1")
	leaf := first(t, must[string](t)(ca.Issue(request, pki.Grant{Identity: who, Now: noon})))
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != who.String() || leaf.Subject.CommonName != "host-1" ||
		len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("the certificate has %v %v %v %v, CA %t", leaf.URIs, leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("an agent's certificate is good for %v", leaf.ExtKeyUsage)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate is for another key")
	}
	if bits := leaf.SerialNumber.BitLen(); bits < 120 || bits > 128 {
		t.Errorf("a serial of %d bits", bits)
	}
	if !leaf.NotBefore.Equal(noon.Add(-pki.Backdate)) || !leaf.NotAfter.Equal(noon.Add(pki.DefaultLeafLife)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
}

func TestIssueRefusesRequests(t *testing.T) {
	ca := authority(t, clusterA)
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	p224 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := requestWith(t, p256(t), &x509.CertificateRequest{})
	// The same request about another key: what somebody sends who wants a certificate for a key that is not his.
	mine := requestWith(t, p256(t), &x509.CertificateRequest{})
	block, _ := pem.Decode([]byte(mine))
	stolen := bytes.Replace(block.Bytes, rawKey(t, mine), rawKey(t, good), 1)

	for name, c := range map[string]struct {
		request string
		reason  pki.Reason
	}{
		"good":                 {good, ""},
		"Ed25519":              {requestWith(t, ed, &x509.CertificateRequest{}), ""},
		"RSA":                  {requestWith(t, rsaKey, &x509.CertificateRequest{}), pki.WeakKey},
		"P-224":                {requestWith(t, p224, &x509.CertificateRequest{}), pki.WeakKey},
		"no possession":        {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: stolen})), pki.Mismatch},
		"two":                  {good + good, pki.Malformed},
		"text before":          {"# mine\n" + good, pki.Malformed},
		"empty":                {"", pki.Malformed},
		"a certificate":        {pki.NewBundle(ca.Root()).PEM(), pki.Malformed},
		"too long":             {good + strings.Repeat("\n", 17<<10), pki.Malformed},
		"garbage in the block": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")})), pki.Malformed},
	} {
		_, err := ca.Issue(c.request, pki.Grant{Identity: identity(t, clusterA, pki.RoleAgent, "host-1"), Now: noon})
		if got := pki.ReasonOf(err); got != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("%s: %q (%v), want %q", name, got, err, c.reason)
		}
	}
}

func rawKey(t testing.TB, request string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(request))
	return must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(block.Bytes)).RawSubjectPublicKeyInfo
}

func TestIssueRefusesGrants(t *testing.T) {
	ca, request := authority(t, clusterA), requestWith(t, p256(t), &x509.CertificateRequest{})
	agent, c1 := identity(t, clusterA, pki.RoleAgent, "host-1"), identity(t, clusterA, pki.RoleCoordinator, "c1")
	for name, g := range map[string]pki.Grant{
		"nobody":                 {Now: noon},
		"another cluster":        {Identity: identity(t, clusterB, pki.RoleAgent, "host-1"), Now: noon},
		"too short":              {Identity: agent, Now: noon, Life: pki.MinLeafLife - time.Second},
		"too long":               {Identity: agent, Now: noon, Life: pki.MaxLeafLife + time.Second},
		"negative":               {Identity: agent, Now: noon, Life: -time.Hour},
		"after the CA's end":     {Identity: agent, Now: ca.Root().Expires()},
		"an agent that serves":   {Identity: agent, Now: noon, Hosts: []string{"h.example.org"}},
		"a host name with space": {Identity: c1, Now: noon, Hosts: []string{"c 1"}},
		"a wildcard":             {Identity: c1, Now: noon, Hosts: []string{"*.example.org"}},
	} {
		if _, err := ca.Issue(request, g); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	// Never beyond the end of the CA.
	near := ca.Root().Expires().Add(-time.Hour)
	if leaf := first(t, must[string](t)(ca.Issue(request, pki.Grant{Identity: agent, Now: near}))); !leaf.NotAfter.Equal(ca.Root().Expires()) {
		t.Errorf("the certificate ends on %s, the CA on %s", leaf.NotAfter, ca.Root().Expires())
	}
	// Ordinary HTTPS clients can verify a coordinator by its name.
	leaf := first(t, must[string](t)(ca.Issue(request, pki.Grant{Identity: c1, Now: noon, Hosts: []string{"c1.example.org", "192.0.2.1", "2001:db8::1"}})))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(pki.NewBundle(ca.Root()).PEM())) {
		t.Fatal("other programs cannot read the bundle")
	}
	for _, name := range []string{"c1.example.org", "192.0.2.1", "2001:db8::1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: noon}); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
}

// The name constraint alone, without this package's own comparison, binds a CA to its cluster.
func TestNameConstraintBindsTheRootToItsCluster(t *testing.T) {
	ca := authority(t, clusterA)
	if ca.Root().Cluster() != clusterA {
		t.Errorf("the root is for %q", ca.Root().Cluster())
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root().Certificate())
	for cluster, ok := range map[string]bool{clusterA: true, clusterB: false} {
		u := must[*url.URL](t)(url.Parse("demiurge://" + cluster + "/agent/host-1"))
		text := ca.Forge(t, &x509.Certificate{NotBefore: noon, NotAfter: noon.Add(time.Hour), URIs: []*url.URL{u}}, p256(t).Public())
		_, err := first(t, text).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: noon, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if (err == nil) != ok {
			t.Errorf("a certificate for %s verifies as %v", cluster, err)
		}
	}
}

func TestNewAuthorityRefuses(t *testing.T) {
	for name, o := range map[string]pki.AuthorityOptions{
		"no cluster":      {Now: noon},
		"upper case":      {Cluster: "C1", Now: noon},
		"a dot":           {Cluster: "a.b", Now: noon},
		"a slash":         {Cluster: "a/b", Now: noon},
		"64 characters":   {Cluster: strings.Repeat("a", 64), Now: noon},
		"a life too long": {Cluster: clusterA, Now: noon, Life: pki.MaxRootLife + 1},
		"and too short":   {Cluster: clusterA, Now: noon, Life: pki.MinRootLife - 1},
	} {
		if _, err := pki.NewAuthority(o); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	a, b := authority(t, clusterA), authority(t, clusterA)
	if a.Root().Pin() == b.Root().Pin() || a.Root().Certificate().SerialNumber.Cmp(b.Root().Certificate().SerialNumber) == 0 {
		t.Error("two CAs have one pin or one serial")
	}
	if bits := a.Root().Certificate().SerialNumber.BitLen(); bits != 127 && bits != 128 {
		t.Errorf("a serial of %d bits", bits)
	}
}

func TestAuthorityIsStoredSealed(t *testing.T) {
	key := pki.NewKey()
	ca := authority(t, clusterA)
	next, bundle, err := ca.Rotate(pki.NewBundle(ca.Root()), pki.RotateOptions{Overlap: 48 * time.Hour, Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	data := must[[]byte](t)(next.Encode(key))
	again := must[*pki.Authority](t)(pki.DecodeAuthority(data, key))
	if again.Root().Pin() != next.Root().Pin() {
		t.Error("another CA came back")
	}
	// It still signs, and still chains to the CA of before.
	memberAt(t, again, bundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon)
	memberAt(t, again, pki.NewBundle(ca.Root()), identity(t, clusterA, pki.RoleAgent, "host-1"), noon)

	if _, err := pki.DecodeAuthority(data, pki.NewKey()); pki.ReasonOf(err) != pki.Mismatch {
		t.Errorf("opened with another key: %v", err)
	}
	if _, err := pki.DecodeAuthority(data, pki.Key{}); err == nil {
		t.Error("opened without a key")
	}
	// The sealed key of one CA is no good beside the certificate of another one.
	mine, theirs := must[[]byte](t)(ca.Encode(key)), must[[]byte](t)(authority(t, clusterA).Encode(key))
	field := func(data []byte) []byte { return data[bytes.Index(data, []byte(`"sealed_key"`)):] }
	mixed := bytes.Replace(mine, field(mine), field(theirs), 1)
	if _, err := pki.DecodeAuthority(mixed, key); pki.ReasonOf(err) != pki.Mismatch {
		t.Errorf("a key of another CA was accepted: %v", err)
	}
	for name, change := range map[string][2]string{
		"a newer format": {`"version":1`, `"version":2`}, "a newer format with more in it": {`"version":1`, `"version":2,"x":[1]`}, "a field from nowhere": {`"version":1`, `"version":1,"x":1`},
		"no certificate": {`"certificate":"-----BEGIN`, `"certificate":"-----BEGAN`},
	} {
		_, err := pki.DecodeAuthority(bytes.Replace(mine, []byte(change[0]), []byte(change[1]), 1), key)
		if newer := strings.HasPrefix(name, "a newer"); pki.ReasonOf(err) != pki.Malformed || newer != strings.Contains(err.Error(), "use the version that wrote it") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pki.DecodeAuthority(append(bytes.Clone(mine), mine...), key); err == nil {
		t.Error("two in one were accepted")
	}
}
