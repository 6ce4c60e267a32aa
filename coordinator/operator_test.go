package coordinator_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestOperatorOfThree goes through what an operator does with a cluster, each call through a follower.
func TestOperatorOfThree(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	put := func() string {
		t.Helper()
		org := string(id.NewOrganization())
		if _, err := s.Leader().Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "o"}); err != nil {
			t.Fatal(err)
		}
		return org
	}

	// A planned transfer names the next leader, and the cluster goes on.
	old := s.Leader()
	moved, err := s.Followers()[0].Admin.TransferLeadership(ctx, s.Followers()[0].ID)
	if err != nil || moved.From != old.ID || moved.Leader == old.ID {
		t.Fatalf("%+v, %v", moved, err)
	}
	if now := s.Leader(); now.ID != moved.Leader {
		t.Errorf("%s leads, not %s", now.ID, moved.Leader)
	}
	if _, err := s.Leader().Admin.TransferLeadership(ctx, "c9"); !fault.Is(err, fault.NotFound) {
		t.Errorf("to nobody: %v", err)
	}
	peers, err := s.Followers()[0].Admin.RaftPeers(ctx)
	if err != nil || len(peers) != 3 {
		t.Fatalf("%+v, %v", peers, err)
	}
	for _, p := range peers {
		if p.Status != "alive" || !p.Voter || p.LastIndex == 0 || p.Leader != (p.ID == moved.Leader) {
			t.Errorf("peer %+v", p)
		}
	}
	members, err := s.Followers()[0].Admin.Members(ctx, client.MemberFilter{Role: "coordinator"})
	if err != nil || len(members) != 3 {
		t.Errorf("%+v, %v", members, err)
	}

	// A snapshot through a follower, a change, and back.
	kept := put()
	var file bytes.Buffer
	if err := s.Followers()[0].Admin.SaveSnapshot(ctx, &file); err != nil {
		t.Fatal(err)
	}
	gone := put()

	// Keys and CA change after the snapshot was made: a restore leaves them as they are.
	keys, err := s.Followers()[0].Admin.RotateGossip(ctx)
	if err != nil || len(keys.Without) != 0 {
		t.Fatalf("%+v, %v", keys, err)
	}
	have, err := s.Leader().Admin.GossipKeys(ctx)
	if err != nil || have.InUse != keys.Key || len(have.Members) != 3 {
		t.Errorf("%+v, %v", have, err)
	}
	ca, err := s.Followers()[0].Admin.RotateCA(ctx, api.RotateCA{})
	if err != nil || ca.Pin == ca.Previous {
		t.Fatalf("%+v, %v", ca, err)
	}

	open := func(data []byte) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	}
	damaged := bytes.Clone(file.Bytes())
	damaged[len(damaged)/2] ^= 1
	if _, err := s.Followers()[0].Admin.RestoreSnapshot(ctx, open(damaged)); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a damaged one: %v", err)
	}
	if _, err := s.Leader().Admin.Organization(ctx, gone); err != nil {
		t.Errorf("a refused restore changed the state: %v", err)
	}
	if _, err := s.Followers()[0].Admin.RestoreSnapshot(ctx, open(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Leader().Admin.Organization(ctx, kept); err != nil {
		t.Errorf("what was saved is gone: %v", err)
	}
	if _, err := s.Leader().Admin.Organization(ctx, gone); !fault.Is(err, fault.NotFound) {
		t.Errorf("what came after the snapshot: %v", err)
	}
	again, err := s.Leader().Admin.RotateCA(ctx, api.RotateCA{})
	if err != nil || again.Previous != ca.Pin {
		t.Errorf("the restore brought an old CA back: %+v, %v", again, err)
	}
	s.SameState()
	state, err := s.Leader().Admin.NodeState(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Followers() {
		if got, err := n.Admin.NodeState(ctx, client.Consistency("stale")); err != nil || got.NodeID != n.ID || got.Index == state.Index && got.Hash != state.Hash {
			t.Errorf("%+v, %v", got, err)
		}
	}
	events, err := s.Leader().Admin.ListEvents(ctx, client.EventQuery{})
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, e := range events {
		if strings.HasPrefix(e.Actor, "tk-") && e.Source == "127.0.0.1" {
			told[e.Type] = true
		}
	}
	for _, kind := range []string{"coordinator.transfer", "snapshot.saved", "snapshot.restored", "trust.changed"} {
		if !told[kind] {
			t.Errorf("no event %s tells who did it: %v", kind, told)
		}
	}
}

// TestASnapshotOfAnotherClusterIsRefused: its hosts, certificates and keys are not of here.
func TestASnapshotOfAnotherClusterIsRefused(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	ours, other := coordtest.StartSeveral(t, 1).Leader(), coordtest.StartSeveral(t, 1).Leader()
	org := string(id.NewOrganization())
	if _, err := ours.Admin.PutOrganization(ctx, org, api.PutOrganization{Name: "o"}); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := other.Admin.SaveSnapshot(ctx, &file); err != nil {
		t.Fatal(err)
	}
	read := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(file.Bytes())), nil }
	if _, err := ours.Admin.RestoreSnapshot(ctx, read); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), "it is of cluster") {
		t.Errorf("%v", err)
	}
	if _, err := ours.Admin.Organization(ctx, org); err != nil {
		t.Errorf("a refused restore changed the state: %v", err)
	}
	if _, err := other.Admin.RestoreSnapshot(ctx, read); err != nil {
		t.Errorf("where it is of: %v", err)
	}
}

// TestARotationThatWasInterruptedBeginsAnew: the end of a leader may leave some members with the old gossip key in use and
// some with the new one.
func TestARotationThatWasInterruptedBeginsAnew(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	leader := s.Leader()
	if err := leader.Run().BeginRotation(ctx, s.Followers()[0].Run()); err != nil {
		t.Fatal(err)
	}
	rotated, err := leader.Admin.RotateGossip(ctx)
	if err != nil || len(rotated.Without) != 0 {
		t.Fatalf("%+v, %v", rotated, err)
	}
	have, err := leader.Admin.GossipKeys(ctx)
	if err != nil || have.InUse != rotated.Key || len(have.Members) != 3 {
		t.Errorf("%+v, %v", have, err)
	}
	for _, m := range have.Members {
		if !slices.Equal(m.Keys, []string{rotated.Key}) {
			t.Errorf("%s has the keys %v, not %s alone", m.Member, m.Keys, rotated.Key)
		}
	}
}

// TestRemovingACoordinator: not a living one, not below quorum; a dead one with its place in the gossip.
func TestRemovingACoordinator(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	down := s.Followers()[0]
	if err := s.Leader().Admin.RemovePeer(ctx, down.ID, false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "alive") {
		t.Errorf("a living one: %v", err)
	}
	if err := s.Leader().Admin.RemovePeer(ctx, "c9", false); !fault.Is(err, fault.NotFound) {
		t.Errorf("nobody: %v", err)
	}
	down.Stop()
	coordtest.Eventually(t, "the gossip has noticed", func() bool {
		failed, err := s.Leader().Admin.Members(ctx, client.MemberFilter{Status: "failed"})
		left, err2 := s.Leader().Admin.Members(ctx, client.MemberFilter{Status: "left"})
		return err == nil && err2 == nil && len(failed)+len(left) == 1
	})
	other := s.Followers()[0]
	if err := s.Leader().Admin.RemovePeer(ctx, other.ID, false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "majority") {
		t.Errorf("one of two that are left alive: %v", err)
	}
	err := s.Leader().Admin.RemovePeer(ctx, down.ID, false)
	if err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	events, err2 := s.Leader().Admin.ListEvents(ctx, client.EventQuery{Topics: []string{"coordinator"}})
	if err2 != nil {
		t.Fatal(err2)
	}
	if told := slices.ContainsFunc(events, func(e api.Event) bool {
		return e.Type == "coordinator.removed" && strings.HasPrefix(e.Actor, "tk-") && e.Source == "127.0.0.1"
	}); err == nil && !told {
		t.Errorf("no event tells who removed it: %+v", events)
	}
	coordtest.Eventually(t, "it is gone everywhere", func() bool {
		peers, err := s.Leader().Admin.RaftPeers(ctx)
		members, err2 := s.Leader().Admin.Members(ctx, client.MemberFilter{})
		return err == nil && err2 == nil && len(peers) == 2 && len(members) == 2
	})
}

// TestStateIsToldWhileItIsWrittenTo: reading everything takes longer than it is until the next entry.
func TestStateIsToldWhileItIsWrittenTo(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t)
	ctx := c.Context()
	writing, stop := context.WithCancel(ctx)
	var written atomic.Int64
	var writers sync.WaitGroup
	for range 16 {
		writers.Go(func() {
			for writing.Err() == nil {
				if _, err := c.Admin.PutOrganization(writing, string(id.NewOrganization()), api.PutOrganization{Name: "one of many"}); err == nil {
					written.Add(1)
				}
			}
		})
	}
	coordtest.Eventually(t, "there is much to read", func() bool { return written.Load() >= 1500 })
	during, err := c.Admin.NodeState(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := written.Load() + 16 // each writer may be about to be answered for what was read
	coordtest.Eventually(t, "more is written", func() bool { return written.Load() > before })
	later, err := c.Admin.NodeState(ctx)
	stop()
	writers.Wait()
	if err != nil || later.Index <= during.Index || later.Hash == during.Hash {
		t.Errorf("%+v, then %+v, %v", during, later, err)
	}
}
