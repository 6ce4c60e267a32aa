package coordtest

import (
	"context"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Join lets a host in through the coordinators at these addresses (host:port), and returns the credentials
// of its agent. A host that is there already is replaced.
func Join(t testing.TB, admin *client.Client, host string, addresses ...string) *pki.Live {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for {
		made, err := admin.CreateJoinToken(ctx, api.CreateJoinToken{Role: string(pki.RoleAgent), Name: host})
		if err != nil {
			t.Fatal(err)
		}
		joined, err := JoinWith(ctx, t, made.Secret, pki.RoleAgent, host, addresses...)
		if err == nil {
			return pki.NewLive(joined.Credentials, pki.LiveOptions{})
		}
		// Coordinators that share a busy machine lose their leader now and then; so would who joins ask again. It is not known
		// whether the token is spent: each one is of the one key that was brought with it.
		if ctx.Err() != nil || !strings.Contains(err.Error(), string(fault.NoLeader)) {
			t.Fatal(err)
		}
	}
}

// JoinWith joins with a join token.
func JoinWith(ctx context.Context, t testing.TB, token string, role pki.Role, name string, addresses ...string) (*pki.Joined, error) {
	t.Helper()
	parsed, err := pki.ParseJoinToken(token)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	store, err := pki.OpenStore(files, dir+"/pki")
	if err != nil {
		t.Fatal(err)
	}
	return pki.Join(ctx, pki.JoinOptions{Addresses: addresses, Token: parsed, Role: role, Name: name, Store: store})
}

// AgentClient speaks for a host with its certificate, and does not try again by itself.
func AgentClient(t testing.TB, live *pki.Live, addresses ...string) *client.Client {
	t.Helper()
	conf, err := live.Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	o := client.Options{TLS: conf, RetryFor: -1}
	for _, a := range addresses {
		o.Addresses = append(o.Addresses, "https://"+a)
	}
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
