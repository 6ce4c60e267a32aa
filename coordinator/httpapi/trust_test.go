package httpapi

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
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

// agentCaller is the kind of caller that has the certificate of the kit's host.
const agentCaller = "agent"

// enroll lets the agent of a host in.
func (k *kit) enroll(host id.Host) {
	k.t.Helper()
	token := pki.NewJoinToken(k.trust.Pin())
	k.apply(command.PutJoinToken{Meta: k.meta(), Token: token.ID, Role: string(pki.RoleAgent), Name: string(host), Hash: string(token.Hash()), ExpiresAt: k.now().Add(time.Hour)})
	k.apply(command.Enroll{Meta: k.meta(), Token: token.ID, Name: string(host), PublicKey: "k"})
}

// certified makes a caller that presents these credentials, and returns what stands for it.
func (k *kit) certified(c *pki.Credentials) string {
	k.t.Helper()
	conf, err := pki.NewLive(c, pki.LiveOptions{}).Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, "h2", "http/1.1")
	if err != nil {
		k.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	k.t.Cleanup(transport.CloseIdleConnections)
	name := fmt.Sprintf("certificate-%d", len(k.programs))
	k.programs[name] = &http.Client{Transport: transport}
	return name
}

// url is where a caller finds the API.
func (k *kit) url(secret string) string {
	if k.programs[secret] != nil {
		return "https://" + k.web.Listener.Addr().String()
	}
	return k.web.URL
}
