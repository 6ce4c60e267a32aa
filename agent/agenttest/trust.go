package agenttest

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Trust is the CA of a cluster under test.
type Trust struct {
	cluster string

	mu     sync.Mutex
	ca     *pki.Authority // guarded by mu
	bundle pki.Bundle     // guarded by mu
}

// now is what signs, and what is trusted.
func (o *Trust) now() (*pki.Authority, pki.Bundle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ca, o.bundle
}

// NewTrust makes the CA of a new cluster.
func NewTrust(t testing.TB) *Trust {
	t.Helper()
	key := pki.NewKey()
	cluster, err := pki.FoundingCluster(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.FoundingAuthority(key, time.Now().Add(-30*24*time.Hour)) // so that certificates may be old
	if err != nil {
		t.Fatal(err)
	}
	return &Trust{ca: ca, bundle: pki.NewBundle(ca.Root()), cluster: cluster}
}

// Issue makes credentials that begin at a moment.
func (o *Trust) Issue(t testing.TB, role pki.Role, name string, at time.Time) *pki.Credentials {
	t.Helper()
	who, err := pki.NewIdentity(o.cluster, role, name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := pki.NewEnrolment()
	if err != nil {
		t.Fatal(err)
	}
	ca, bundle := o.now()
	certificate, err := ca.Issue(e.Request(), pki.Grant{Identity: who, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.Accept(certificate, bundle.PEM(), who, at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Join puts the certificate of a host into the data directory of its agent.
func (o *Trust) Join(t testing.TB, dataDir, host string, at time.Time) {
	t.Helper()
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := fsx.NewOS(dataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = files.Close() }()
	store, err := pki.OpenStore(files, filepath.Join(dataDir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Save(o.Issue(t, pki.RoleAgent, host, at)); err != nil {
		t.Fatal(err)
	}
}

// Answer answers a request for a certificate as a coordinator does.
func (o *Trust) Answer(in api.JoinRequest, at time.Time) (api.JoinAnswer, error) {
	who, err := pki.NewIdentity(o.cluster, pki.Role(in.Role), in.Name)
	if err != nil {
		return api.JoinAnswer{}, err
	}
	ca, bundle := o.now()
	certificate, err := ca.Issue(in.CSR, pki.Grant{Identity: who, Now: at})
	return api.JoinAnswer{Certificate: certificate, CA: bundle.PEM()}, err
}

// Rotate makes the next CA.
func (o *Trust) Rotate(t testing.TB, overlap time.Duration) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	ca, bundle, err := o.ca.Rotate(o.bundle, pki.RotateOptions{Overlap: overlap, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	o.ca, o.bundle = ca, bundle
}

// Bundle is whom the cluster trusts.
func (o *Trust) Bundle() pki.Bundle {
	_, bundle := o.now()
	return bundle
}

// Pin names the CA.
func (o *Trust) Pin() pki.Pin { return o.Bundle().Pin() }

// server is what a coordinator listens with: agents come with their certificate.
func (o *Trust) server(t testing.TB) *tls.Config {
	t.Helper()
	live := pki.NewLive(o.Issue(t, pki.RoleCoordinator, "c1", time.Now()), pki.LiveOptions{})
	conf, err := live.Server(pki.Peer{Roles: []pki.Role{pki.RoleAgent}}, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	return conf
}
