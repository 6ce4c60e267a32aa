package pki_test

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// TestFoundingIsTheSameEverywhere: coordinators that share nothing but the key trust each other.
func TestFoundingIsTheSameEverywhere(t *testing.T) {
	key, now := pki.NewKey(), time.Now()
	cluster, err := pki.FoundingCluster(key)
	if err != nil {
		t.Fatal(err)
	}
	member := func(name string, at time.Time) *pki.Credentials {
		t.Helper()
		ca, err := pki.FoundingAuthority(key, at)
		if err != nil {
			t.Fatal(err)
		}
		who, err := pki.NewIdentity(cluster, pki.RoleCoordinator, name)
		if err != nil {
			t.Fatal(err)
		}
		e, err := pki.NewEnrolment()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.Issue(e.Request(), pki.Grant{Identity: who, Now: at})
		if err != nil {
			t.Fatal(err)
		}
		// Believed by what another one, which began at another time, made of the key.
		other, err := pki.FoundingAuthority(key, at.Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if other.Root().Pin() != ca.Root().Pin() {
			t.Fatal("two coordinators with one key make two CAs")
		}
		c, err := e.Accept(chain, pki.NewBundle(other.Root()).PEM(), who, at.Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	member("c1", now)
	member("c2", now.Add(5*time.Minute))
	otherCluster, err := pki.FoundingCluster(pki.NewKey())
	if err != nil || otherCluster == cluster {
		t.Errorf("another key founds cluster %s too, %v", otherCluster, err)
	}
	if _, err := pki.FoundingAuthority(pki.Key{}, now); err == nil {
		t.Error("a cluster is founded without a key")
	}
	gossip, err := pki.FoundingGossip(key)
	if err != nil || len(gossip) != 32 {
		t.Errorf("gossip key of %d bytes, %v", len(gossip), err)
	}
}

// TestFoundingIsFrozen: a coordinator of the next version has to make the same.
func TestFoundingIsFrozen(t *testing.T) {
	key, err := pki.ParseKey("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := pki.FoundingCluster(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.FoundingAuthority(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if cluster != "8385a548-d04b-817d-a1e5-6302f20078ac" || ca.Root().Pin().String() != "sha256:e52b9cbc3ef1bdfdbf4e244cc9cfa8d45ecb0974f73e3a2148e5355c4b253ba2" {
		t.Errorf("cluster %s, CA %s", cluster, ca.Root().Pin())
	}
}
