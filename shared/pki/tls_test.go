package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

var (
	anyRole  = pki.Peer{Roles: []pki.Role{pki.RoleCoordinator, pki.RoleAgent}}
	bothUses = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
)

func TestMutualTLSKnowsBothSides(t *testing.T) {
	ca := authority(t, clusterA)
	server := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), only(pki.RoleAgent), "h2")
	client := clientOf(t, live(member(t, ca, pki.RoleAgent, "host-1"), noon), pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}, Name: "c1"}, "h2")
	m := meet(t, server, client)
	if m.server != nil || m.client != nil {
		t.Fatalf("server: %v, client: %v", m.server, m.client)
	}
	if who, ok := pki.PeerOf(&m.serverState); !ok || who != identity(t, clusterA, pki.RoleAgent, "host-1") {
		t.Errorf("the server met %s", who)
	}
	if who, ok := pki.PeerOf(&m.clientState); !ok || who != identity(t, clusterA, pki.RoleCoordinator, "c1") {
		t.Errorf("the client met %s", who)
	}
	if m.serverState.Version != tls.VersionTLS13 || m.clientState.NegotiatedProtocol != "h2" {
		t.Errorf("version %x, protocol %q", m.serverState.Version, m.clientState.NegotiatedProtocol)
	}
}

// refusals are the wrong callers of a Raft port. Each is turned around, too: as the server that a client
// must refuse.
func refusals(t *testing.T, ca *pki.Authority) map[string]struct {
	caller *pki.Credentials
	reason pki.Reason
	asked  pki.Peer
} {
	own, other := pki.NewBundle(ca.Root()), authority(t, clusterA)
	coordinators := only(pki.RoleCoordinator)
	forge := func(uses []x509.ExtKeyUsage, uris ...string) *pki.Credentials {
		e := must[*pki.Enrolment](t)(pki.NewEnrolment())
		template := &x509.Certificate{NotBefore: noon, NotAfter: noon.Add(time.Hour), ExtKeyUsage: uses}
		for _, u := range uris {
			template.URIs = append(template.URIs, must[*url.URL](t)(url.Parse(u)))
		}
		return pki.Unchecked(t, e, ca.Forge(t, template, e.Public()), own)
	}
	c9 := identity(t, clusterA, pki.RoleCoordinator, "c9")
	return map[string]struct {
		caller *pki.Credentials
		reason pki.Reason
		asked  pki.Peer
	}{
		"other CA of the same cluster id":                        {member(t, authority(t, clusterA), pki.RoleCoordinator, "c9"), pki.OtherCA, coordinators},
		"another cluster":                                        {member(t, authority(t, clusterB), pki.RoleCoordinator, "c9"), pki.OtherCluster, coordinators},
		"an agent's certificate where a coordinator's is needed": {member(t, ca, pki.RoleAgent, "host-1"), pki.WrongRole, coordinators},
		"another host's certificate":                             {member(t, ca, pki.RoleCoordinator, "c9"), pki.WrongName, pki.Peer{Roles: coordinators.Roles, Name: "c2"}},
		"an expired certificate":                                 {memberAt(t, ca, own, c9, noon.Add(-pki.DefaultLeafLife-time.Second)), pki.Expired, coordinators},
		"a certificate that begins too late":                     {memberAt(t, ca, own, c9, noon.Add(pki.Backdate+time.Second)), pki.NotYetValid, coordinators},
		"expired and of another CA":                              {memberAt(t, other, pki.NewBundle(other.Root()), c9, noon.Add(-1000*time.Hour)), pki.OtherCA, coordinators},
		"no identity":                                            {forge(bothUses), pki.Malformed, coordinators},
		"two identities":                                         {forge(bothUses, c9.String(), c9.String()), pki.Malformed, coordinators},
		"a foreign identity":                                     {forge(bothUses, "spiffe://"+clusterA+"/coordinator/c9"), pki.Malformed, coordinators},
		"an identity with something behind it":                   {forge(bothUses, c9.String()+"?a=b"), pki.Malformed, coordinators},
		"an identity of another cluster signed by this CA":       {forge(bothUses, "demiurge://"+clusterB+"/coordinator/c9"), pki.OtherCluster, coordinators},
		"a certificate for neither use":                          {forge([]x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, c9.String()), pki.WrongRole, coordinators},
	}
}

func TestRaftPortRefuses(t *testing.T) {
	ca := authority(t, clusterA)
	for name, c := range refusals(t, ca) {
		t.Run(name, func(t *testing.T) {
			server := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), c.asked)
			// The caller itself thinks that all is well: its clock is right for its certificate, and it accepts c1.
			caller := serverOf(t, pki.NewLive(c.caller, pki.LiveOptions{Now: at(c.caller.Leaf().NotBefore)}), anyRole)
			m := meet(t, server, attacker(t, c.caller))
			expectReason(t, m.server, c.reason)
			if m.client == nil {
				t.Error("the caller got an answer")
			}
			if c.caller.Identity().Role() != pki.RoleCoordinator {
				return // Live does not even let it serve
			}
			m = meet(t, caller, clientOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), c.asked))
			expectReason(t, m.client, c.reason)
		})
	}
}

// attacker is a client that presents what it has and accepts everybody.
func attacker(t *testing.T, c *pki.Credentials) *tls.Config {
	t.Helper()
	honest := clientOf(t, pki.NewLive(c, pki.LiveOptions{Now: at(c.Leaf().NotBefore)}), anyRole)
	honest.VerifyConnection = nil
	return honest
}

// expectReason wants the reason, and a text that names something and says what to do.
func expectReason(t *testing.T, err error, want pki.Reason) {
	t.Helper()
	if got := pki.ReasonOf(err); got != want {
		t.Fatalf("refused as %q (%v), want %q", got, err, want)
	}
	if text := err.Error(); !strings.HasPrefix(text, "cannot ") && !strings.HasPrefix(text, "the server ") || len(text) < 40 {
		t.Errorf("%q does not say what to do", text)
	}
}

func TestNobodyWithoutACertificate(t *testing.T) {
	ca := authority(t, clusterA)
	c1 := live(member(t, ca, pki.RoleCoordinator, "c1"), noon)
	nobody := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if m := meet(t, serverOf(t, c1, anyRole), nobody); m.server == nil || m.client == nil {
		t.Errorf("a caller without a certificate was let in (server %v, client %v)", m.server, m.client)
	}
	peer := pki.Peer{Roles: []pki.Role{pki.RoleAgent}, Anonymous: true}
	m := meet(t, serverOf(t, c1, peer), nobody)
	if m.server != nil || m.client != nil {
		t.Fatalf("an anonymous caller was refused: %v, %v", m.server, m.client)
	}
	if who, ok := pki.PeerOf(&m.serverState); ok {
		t.Errorf("an anonymous caller is %s", who)
	}
	m = meet(t, serverOf(t, c1, peer), attacker(t, member(t, authority(t, clusterA), pki.RoleAgent, "host-1")))
	expectReason(t, m.server, pki.OtherCA)
}

func TestOnlyTLS13(t *testing.T) {
	ca := authority(t, clusterA)
	old := attacker(t, member(t, ca, pki.RoleCoordinator, "c2"))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if m := meet(t, serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), anyRole), old); m.server == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestAgentDoesNotServe(t *testing.T) {
	ca := authority(t, clusterA)
	agent := member(t, ca, pki.RoleAgent, "host-1")
	m := meet(t, serverOf(t, live(agent, noon), anyRole), clientOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), anyRole))
	expectReason(t, m.server, pki.WrongRole)

	// Nor does anybody believe an agent that serves with a configuration of its own.
	client := clientOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), anyRole)
	rogue := &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return attacker(t, agent).GetClientCertificate(nil)
	}}
	expectReason(t, meet(t, rogue, client).client, pki.WrongRole)
}

// A certificate that a fast clock issued is good at once where the clock is slower, within Backdate.
func TestNotYetValidAllowsForClockSkew(t *testing.T) {
	ca := authority(t, clusterA)
	who := identity(t, clusterA, pki.RoleAgent, "host-1")
	server := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), only(pki.RoleAgent))
	for skew, want := range map[time.Duration]pki.Reason{
		pki.Backdate - time.Minute: "", pki.Backdate: "", pki.Backdate + time.Minute: pki.NotYetValid,
	} {
		issued := noon.Add(skew)
		c := memberAt(t, ca, pki.NewBundle(ca.Root()), who, issued)
		m := meet(t, server, clientOf(t, live(c, issued), only(pki.RoleCoordinator)))
		if got := pki.ReasonOf(m.server); got != want {
			t.Errorf("issued by a clock that is %s fast: %q (%v), want %q", skew, got, m.server, want)
		}
	}
}

// A program whose own certificate has ended says so itself: the alert of the other side would not.
func TestOwnExpiredCertificateIsNotPresented(t *testing.T) {
	ca := authority(t, clusterA)
	late := noon.Add(pki.DefaultLeafLife + time.Second)
	bundle := pki.NewBundle(ca.Root())
	server := memberAt(t, ca, bundle, identity(t, clusterA, pki.RoleCoordinator, "c1"), late)
	m := meet(t, serverOf(t, live(server, late), anyRole), clientOf(t, live(member(t, ca, pki.RoleAgent, "host-1"), late), anyRole))
	expectReason(t, m.client, pki.Expired)
	m = meet(t, serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c2"), late), anyRole), clientOf(t, live(server, late), anyRole))
	expectReason(t, m.server, pki.Expired)
}

func TestSessionsAreNeverResumed(t *testing.T) {
	ca := authority(t, clusterA)
	server := serverOf(t, live(member(t, ca, pki.RoleCoordinator, "c1"), noon), anyRole)
	client := clientOf(t, live(member(t, ca, pki.RoleAgent, "host-1"), noon), anyRole)
	client.SessionTicketsDisabled, client.ClientSessionCache, client.ServerName = false, tls.NewLRUClientSessionCache(8), "c1"
	server.Time, client.Time = at(noon), at(noon) // crypto/tls itself does not resume after the end of a certificate
	for range 3 {
		if m := meet(t, server, client); m.server != nil || m.client != nil || m.serverState.DidResume {
			t.Fatalf("server %v, client %v, resumed %t", m.server, m.client, m.serverState.DidResume)
		}
	}
}

func TestPeerMustNameRoles(t *testing.T) {
	l := live(member(t, authority(t, clusterA), pki.RoleCoordinator, "c1"), noon)
	for name, peer := range map[string]pki.Peer{"no role": {}, "an unknown role": only("owner"), "only a name": {Name: "c1"}} {
		if _, err := l.Server(peer); err == nil {
			t.Errorf("%s makes a server", name)
		}
		if _, err := l.Client(peer); err == nil {
			t.Errorf("%s makes a client", name)
		}
	}
	if _, err := l.Client(pki.Peer{Roles: anyRole.Roles, Anonymous: true}); err == nil {
		t.Error("a client accepts a server without a certificate")
	}
	if who, ok := pki.PeerOf(nil); ok {
		t.Errorf("nobody is %s", who)
	}
}

func TestHTTP2OverMutualTLS(t *testing.T) {
	ca := authority(t, clusterA)
	c1 := live(member(t, ca, pki.RoleCoordinator, "c1"), noon)
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{
		TLSConfig: serverOf(t, c1, only(pki.RoleAgent), "h2", "http/1.1"), ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who, _ := pki.PeerOf(r.TLS)
			_, _ = fmt.Fprint(w, who)
		}),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(listener, "", "") }() // waited for by the cleanup
	t.Cleanup(func() { _ = server.Close(); <-done })

	get := func(c *pki.Credentials, peer pki.Peer) (*http.Response, string, error) {
		transport := &http.Transport{TLSClientConfig: clientOf(t, live(c, noon), peer, "h2", "http/1.1"), ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get("https://" + listener.Addr().String())
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		return response, string(text), err
	}
	response, text, err := get(member(t, ca, pki.RoleAgent, "host-1"), only(pki.RoleCoordinator))
	if err != nil || response.ProtoMajor != 2 || text != "demiurge://"+clusterA+"/agent/host-1" {
		t.Fatalf("%v %q %v", response, text, err)
	}
	if _, _, err := get(member(t, ca, pki.RoleCoordinator, "c2"), only(pki.RoleCoordinator)); err == nil {
		t.Error("a coordinator got in where an agent is wanted")
	}
	// Reasons come through net/http.
	_, _, err = get(member(t, ca, pki.RoleAgent, "host-1"), pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}, Name: "c2"})
	if pki.ReasonOf(err) != pki.WrongName {
		t.Errorf("dialled c2 and met c1: %v", err)
	}
}
