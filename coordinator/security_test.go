package coordinator_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

func TestSecurityAgentsCertificateOnTheRaftPort(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 1)
	node := s.Nodes[0]
	live := coordtest.Join(t, node.Admin, "h1", node.Config.API.Listen)
	for _, protocol := range []string{"demiurge-raft/1", "h2"} {
		conf, err := live.Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, protocol)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: coordtest.Patience}, "tcp", node.Config.Raft.Listen, conf)
		if err == nil { // the client's half of the handshake is done before its certificate is looked at
			_ = conn.SetReadDeadline(time.Now().Add(coordtest.Patience))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		var timeout net.Error
		if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: an agent came in: %v", protocol, err)
		}
	}
}

// TestSecurityWrongCAPin: a host whose token names another CA tells nobody its token.
func TestSecurityWrongCAPin(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	made, err := c.Admin.CreateJoinToken(c.Context(), api.CreateJoinToken{Role: "agent"})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(made.Secret, ".")
	parts[3] = strings.Repeat("0", len(parts[3]))
	_, err = coordtest.JoinWith(c.Context(), t, strings.Join(parts, "."), pki.RoleAgent, "h1", c.Address())
	if err == nil || !strings.Contains(err.Error(), "the token was not sent") {
		t.Errorf("joined: %v", err)
	}
	listed, err := c.Admin.ListJoinTokens(c.Context())
	if err != nil || len(listed) != 1 || listed[0].UsedAt != nil {
		t.Errorf("%+v, %v", listed, err)
	}
}

func TestSecurityDeletedHostIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	ctx := c.Context()
	live := coordtest.Join(t, c.Admin, "h1", c.Address())
	speaker := coordtest.AgentClient(t, live, c.Address())
	report := api.Observation{HostID: "h1", Instance: "i1", Full: true, Host: &api.HostReport{Address: "192.0.2.1", Capacity: 1, Version: "1", Nginx: api.NginxStatus{State: api.NginxServing}}}
	if _, err := speaker.Observe(ctx, report); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { // ends with its stream
		ended <- speaker.AgentStream(ctx, "h1", "i1", func(api.AssignmentFrame) error { return nil })
	}()
	if err := c.Admin.DeleteHost(ctx, "h1"); err != nil {
		t.Fatal(err)
	}
	if _, err := speaker.Observe(ctx, report); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a deleted host reports: %v", err)
	}
	<-ended
	if ctx.Err() != nil {
		t.Error("the stream of a deleted host goes on")
	}
}

// TestAgentsAreHeardThroughFollowers: the leader decides about a certificate that another coordinator saw.
func TestAgentsAreHeardThroughFollowers(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	leader, follower := s.Leader(), s.Followers()[0]
	ctx, cancel := context.WithTimeout(context.Background(), coordtest.Patience)
	defer cancel()
	live := coordtest.Join(t, follower.Admin, "h1", follower.Config.API.Listen)
	speaker := coordtest.AgentClient(t, live, follower.Config.API.Listen)
	// An agent asks again while the lead changes, as it may on a busy machine.
	observe := func(speaker *client.Client, o api.Observation) (err error) {
		for {
			if _, err = speaker.Observe(ctx, o); !fault.Is(err, fault.NoLeader) {
				return err
			}
		}
	}
	if err := observe(speaker, api.Observation{HostID: "h1", Instance: "i1", Full: true, Host: &api.HostReport{Address: "192.0.2.1", Capacity: 1, Version: "1"}}); err != nil {
		t.Fatal(err)
	}
	if err := observe(speaker, api.Observation{HostID: "h2", Instance: "i1"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("it speaks for another host: %v", err)
	}
	e, err := pki.NewEnrolment()
	if err != nil {
		t.Fatal(err)
	}
	var answer api.JoinAnswer
	coordtest.Eventually(t, "all coordinators are named with the next certificate", func() bool { // those that the gossip holds for alive are
		answer, err = speaker.RenewCertificate(ctx, api.JoinRequest{CSR: e.Request(), Role: "agent", Name: "h1"})
		if err != nil && !fault.Is(err, fault.NoLeader) {
			t.Fatal(err)
		}
		return err == nil && len(answer.Cluster.APIAddresses) == 3 && len(answer.Cluster.SerfAddresses) == 3
	})
	if answer.Cluster.ClusterKey != "" {
		t.Errorf("%+v", answer.Cluster)
	}
	next, err := e.Accept(answer.Certificate, answer.CA, live.Current().Identity(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := observe(coordtest.AgentClient(t, pki.NewLive(next, pki.LiveOptions{}), leader.Config.API.Listen), api.Observation{HostID: "h1", Instance: "i1"}); err != nil {
		t.Errorf("with the next certificate: %v", err)
	}
	if err := leader.Admin.DeleteHost(ctx, "h1"); err != nil {
		t.Fatal(err)
	}
	if err := observe(speaker, api.Observation{HostID: "h1", Instance: "i1"}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a deleted host reports: %v", err)
	}
}

// TestCoordinatorJoins: with a join token a new coordinator gets what it needs, once.
func TestCoordinatorJoins(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	made, err := c.Admin.CreateJoinToken(c.Context(), api.CreateJoinToken{Role: "coordinator", Name: "c2"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := coordinator.DefaultConfig()
	cfg.NodeID, cfg.DataDir = "c2", filepath.Join(t.TempDir(), "data")
	join := func() string {
		var out bytes.Buffer
		if err := coordinator.Join(c.Context(), coordinator.JoinOptions{Config: cfg, Token: made.Secret, Address: []string{c.Address()}, Out: &out}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if said := join(); !strings.Contains(said, "joined cluster") {
		t.Errorf("it said %s", said)
	}
	for _, name := range []string{"cluster.key", "trust.json"} {
		info, err := os.Stat(filepath.Join(cfg.DataDir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	have, err := os.ReadFile(filepath.Join(cfg.DataDir, "cluster.key"))
	want, err2 := os.ReadFile(filepath.Join(c.DataDir(), "cluster.key"))
	if err != nil || err2 != nil || !bytes.Equal(have, want) {
		t.Errorf("the key is another one: %v, %v", err, err2)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "joining")); !os.IsNotExist(err) {
		t.Errorf("something is left over: %v", err)
	}
	if said := join(); !strings.Contains(said, "already joined") {
		t.Errorf("it said %s", said)
	}
	if _, err := coordtest.JoinWith(c.Context(), t, made.Secret, pki.RoleCoordinator, "c2", c.Address()); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the token was used twice: %v", err)
	}
	if key := coordinator.Keygen(); len(key) != 64 || key == coordinator.Keygen() {
		t.Error("keygen does not make keys")
	}
}

// TestTLSIsForPeopleToo: an ordinary HTTPS client with the CA in its hands reaches the API.
func TestTLSIsForPeopleToo(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	people, err := client.New(client.Options{Addresses: []string{"https://" + c.Address()}, Token: c.Token, CACert: filepath.Join(c.DataDir(), "ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := people.Status(c.Context()); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	t.Parallel()
	for listen, ok := range map[string]bool{"127.0.0.1:7400": true, "[::1]:7400": true, "0.0.0.0:7400": false, "192.0.2.1:7400": false, "localhost:7400": false, ":7400": false} {
		cfg := coordinator.DefaultConfig()
		cfg.NodeID, cfg.Domain = "c1", "example.org"
		cfg.API.Listen, cfg.API.Plain = listen, true
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("%s: %v", listen, err)
		}
	}
}
