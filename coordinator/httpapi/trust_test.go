package httpapi

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// ownTrust is a CA and the coordinator's credentials, as coordinator/trust keeps them.
type ownTrust struct {
	t       testing.TB
	ca      *pki.Authority
	cluster string
	live    *pki.Live
}

func newTrust(t testing.TB) *ownTrust {
	t.Helper()
	key := pki.NewKey()
	cluster, err := pki.FoundingCluster(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.FoundingAuthority(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o := &ownTrust{t: t, ca: ca, cluster: cluster}
	o.live = pki.NewLive(o.credentials(pki.RoleCoordinator, "c1", time.Now()), pki.LiveOptions{})
	return o
}

func (o *ownTrust) Pin() pki.Pin { return o.ca.Root().Pin() }

func (o *ownTrust) identity(role pki.Role, name string) pki.Identity {
	o.t.Helper()
	who, err := pki.NewIdentity(o.cluster, role, name)
	if err != nil {
		o.t.Fatal(err)
	}
	return who
}

func (o *ownTrust) Issue(request string, role pki.Role, name string, now time.Time) (certificate, ca string, err error) {
	certificate, err = o.ca.Issue(request, pki.Grant{Identity: o.identity(role, name), Now: now})
	return certificate, pki.NewBundle(o.ca.Root()).PEM(), err
}

func (o *ownTrust) Cluster(role pki.Role) api.JoinCluster {
	out := api.JoinCluster{ClusterID: o.cluster, APIAddresses: []string{"192.0.2.1:7400"}, GossipKey: "Z29zc2lw"}
	if role == pki.RoleCoordinator {
		out.ClusterKey, out.Trust = "cluster-key", []byte("{}")
	}
	return out
}

// credentials are those of a program of this cluster, made at a moment.
func (o *ownTrust) credentials(role pki.Role, name string, at time.Time) *pki.Credentials {
	o.t.Helper()
	e, err := pki.NewEnrolment()
	if err != nil {
		o.t.Fatal(err)
	}
	certificate, ca, err := o.Issue(e.Request(), role, name, at)
	if err != nil {
		o.t.Fatal(err)
	}
	c, err := e.Accept(certificate, ca, o.identity(role, name), at)
	if err != nil {
		o.t.Fatal(err)
	}
	return c
}
