package agenttest

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Trust is the CA of a cluster under test.
type Trust struct {
	ca      *pki.Authority
	bundle  pki.Bundle
	cluster string
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
	certificate, err := o.ca.Issue(e.Request(), pki.Grant{Identity: who, Now: at})
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.Accept(certificate, o.bundle.PEM(), who, at)
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
	certificate, err := o.ca.Issue(in.CSR, pki.Grant{Identity: who, Now: at})
	return api.JoinAnswer{Certificate: certificate, CA: o.bundle.PEM()}, err
}

// Pin names the CA.
func (o *Trust) Pin() pki.Pin { return o.ca.Root().Pin() }

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
