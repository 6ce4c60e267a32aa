package fsm_test

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestTrustIsChangedFromWhatWasSeen(t *testing.T) {
	m := newMachine(t)
	first := command.PutTrust{Meta: m.meta(), Bundle: []byte("b1"), Authority: []byte("a1"), Keyring: []byte("k1"), Reason: "new"}
	m.ok(first)
	if m.types() != "trust.changed" {
		t.Fatal("no event")
	}
	m.refused(fault.Conflict, first) // made from nothing, and there is something now
	seen := m.store.View().Trust(nil).ModifyIndex
	second := first
	second.Base, second.Bundle = seen, []byte("b2")
	m.ok(second)
	third := second
	third.Bundle = []byte("b3")
	m.refused(fault.Conflict, third)
	if have := m.store.View().Trust(nil); string(have.Bundle) != "b2" || have.ModifyIndex == seen {
		t.Fatalf("%+v", have)
	}
}

// TestJoinTokenLetsOneIn: a token lets one program in, once, under its name, in time.
func TestJoinTokenLetsOneIn(t *testing.T) {
	m := newMachine(t)
	put := command.PutJoinToken{Meta: m.meta(), Token: jtID(1), Role: "agent", Hash: "h1", ExpiresAt: m.now.Add(time.Hour), Key: "k", Digest: "d"}
	if r := m.ok(put); r.Existing || r.Object != string(jtID(1)) || m.types() != "join_token.created" {
		t.Fatalf("%+v", r)
	}
	if r := m.ok(put); !r.Existing || r.Object != string(jtID(1)) {
		t.Fatalf("%+v", r)
	}
	other := put
	other.Digest = "other"
	m.refused(fault.Conflict, other)
	m.refused(fault.InvalidRequest, command.PutJoinToken{Meta: m.meta(), Token: jtID(9), Role: "admin", Hash: "h", ExpiresAt: m.now})
	m.refused(fault.InvalidRequest, command.PutJoinToken{Meta: m.meta(), Token: jtID(9), Role: "agent", Hash: "h"})

	m.refused(fault.Unauthenticated, command.Enroll{Meta: m.meta(), Token: jtID(7), Name: "h1", PublicKey: "k1"})
	if r := m.ok(command.Enroll{Meta: m.meta(), Token: jtID(1), Name: "h1", PublicKey: "k1"}); r.Object != "agent" || m.types() != "agent.enrolled" {
		t.Fatalf("%+v", r)
	}
	// Asked again by the same program, it is answered again. Whoever else has it, is not.
	again := command.Enroll{Meta: m.meta(), Token: jtID(1), Name: "h1", PublicKey: "k1"}
	enrolled := m.store.View().Enrolment(nil, "agent", "h1").ModifyIndex
	if r := m.ok(again); !r.Existing || r.Object != "agent" || m.types() != "" || m.store.View().Enrolment(nil, "agent", "h1").ModifyIndex != enrolled {
		t.Fatalf("%+v", r)
	}
	m.refused(fault.Unauthenticated, command.Enroll{Meta: m.meta(), Token: jtID(1), Name: "h2", PublicKey: "k1"})
	m.refused(fault.Unauthenticated, command.Enroll{Meta: m.meta(), Token: jtID(1), Name: "h1", PublicKey: "k2"})
	if m.store.View().Enrolment(nil, "agent", "h1") == nil || m.store.View().Enrolment(nil, "coordinator", "h1") != nil {
		t.Fatal("not enrolled, or as something else")
	}

	// A name that is taken needs a token for that name, and a token for a name is good for no other.
	m.ok(command.PutJoinToken{Meta: m.meta(), Token: jtID(2), Role: "agent", Hash: "h2", ExpiresAt: m.now.Add(time.Hour)})
	m.refused(fault.Conflict, command.Enroll{Meta: m.meta(), Token: jtID(2), Name: "h1", PublicKey: "k1"})
	m.ok(command.PutJoinToken{Meta: m.meta(), Token: jtID(3), Role: "agent", Name: "h1", Hash: "h3", ExpiresAt: m.now.Add(time.Hour)})
	m.refused(fault.Forbidden, command.Enroll{Meta: m.meta(), Token: jtID(3), Name: "h2", PublicKey: "k1"})
	before := m.store.View().Enrolment(nil, "agent", "h1").CreateIndex
	m.ok(command.Enroll{Meta: m.meta(), Token: jtID(3), Name: "h1", PublicKey: "k1"})
	if e := m.store.View().Enrolment(nil, "agent", "h1"); e.CreateIndex == before || e.JoinToken != jtID(3) {
		t.Fatalf("the enrolment was not replaced: %+v", e)
	}

	m.refused(fault.Unauthenticated, again) // the enrolment is another one now
	m.refused(fault.InvalidRequest, command.Enroll{Meta: m.meta(), Token: jtID(2), Name: "h9"})

	// Time and hand end a token, also a used one.
	late := command.Enroll{Meta: m.meta(), Token: jtID(3), Name: "h1", PublicKey: "k1"}
	late.At = m.now.Add(2 * time.Hour)
	m.refused(fault.Unauthenticated, late)
	m.ok(command.DeleteJoinToken{Meta: m.meta(), Token: jtID(2)})
	m.refused(fault.NotFound, command.DeleteJoinToken{Meta: m.meta(), Token: jtID(2)})
	m.ok(command.PutJoinToken{Meta: m.meta(), Token: jtID(4), Role: "agent", Hash: "h4", ExpiresAt: m.now})
	m.refused(fault.Unauthenticated, command.Enroll{Meta: m.meta(), Token: jtID(4), Name: "h4", PublicKey: "k1"})
	m.ok(command.Collect{Meta: m.meta(), Before: m.now.Add(time.Hour)})
	if m.store.View().JoinToken(nil, jtID(4)) != nil {
		t.Fatal("an expired join token is kept for ever")
	}
}

func TestExpelled(t *testing.T) {
	m := small(t, 1)
	m.ok(command.PutJoinToken{Meta: m.meta(), Token: jtID(1), Role: "agent", Hash: "h", ExpiresAt: m.now.Add(time.Hour)})
	m.ok(command.Enroll{Meta: m.meta(), Token: jtID(1), Name: "h1", PublicKey: "k1"})
	m.types()
	m.ok(command.DeleteHost{Meta: m.meta(), Host: "h1"})
	if m.store.View().Enrolment(nil, "agent", "h1") != nil {
		t.Fatal("the agent of a deleted host may still come in")
	}
	m.refused(fault.NotFound, command.DeleteEnrolment{Meta: m.meta(), Role: "agent", Name: "h1"})

	m.ok(command.PutJoinToken{Meta: m.meta(), Token: jtID(2), Role: "coordinator", Hash: "h", ExpiresAt: m.now.Add(time.Hour)})
	m.ok(command.Enroll{Meta: m.meta(), Token: jtID(2), Name: "c2", PublicKey: "k1"})
	m.types()
	m.ok(command.DeleteEnrolment{Meta: m.meta(), Role: "coordinator", Name: "c2", Reason: "stolen"})
	if m.types() != "coordinator.expelled" || m.store.View().Enrolment(nil, "coordinator", "c2") != nil {
		t.Fatal("the coordinator may still come in")
	}
}
