package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Roles of an enrolment.
const (
	roleAgent       = "agent"
	roleCoordinator = "coordinator"
)

func putTrust(t *state.Txn, c command.PutTrust) command.Result {
	var version uint64
	if have := t.Trust(nil); have != nil {
		version = have.ModifyIndex
	}
	if c.Base != version {
		return refuse(fault.Conflict, "the certificates or gossip keys were changed at the same time by somebody else; look at them and try again")
	}
	t.PutTrust(state.Trust{Bundle: c.Bundle, Authority: c.Authority, Keyring: c.Keyring})
	t.Emit(state.Event{Type: "trust.changed", Reason: c.Reason})
	return command.Result{Count: 1}
}

func putJoinToken(t *state.Txn, c command.PutJoinToken) command.Result {
	if q := t.Request(c.Key); q != nil {
		if q.Kind != state.KindJoinToken || q.Digest != c.Digest {
			return refuse(fault.Conflict, "this idempotency key was used for another request; use a new key")
		}
		return command.Result{Existing: true, Object: q.Objects[0]}
	}
	if c.Token == "" || c.Hash == "" || c.Role != roleAgent && c.Role != roleCoordinator || c.ExpiresAt.IsZero() {
		return refuse(fault.InvalidRequest, "a join token needs an id, the hash of its secret, a role (agent or coordinator) and an end")
	}
	if t.JoinToken(nil, c.Token) != nil {
		return refuse(fault.Conflict, "join token %s exists already", c.Token)
	}
	t.PutJoinToken(state.JoinToken{ID: c.Token, Role: c.Role, Name: c.Name, Hash: c.Hash, ExpiresAt: c.ExpiresAt.UTC()})
	if c.Key != "" {
		t.PutRequest(state.Request{
			Key: c.Key, Digest: c.Digest, Kind: state.KindJoinToken, Objects: []string{string(c.Token)}, At: t.Now(),
		})
	}
	t.Emit(state.Event{Type: "join_token.created", Reason: c.Role + " " + c.Name, After: string(c.Token)})
	return command.Result{Object: string(c.Token)}
}

func deleteJoinToken(t *state.Txn, c command.DeleteJoinToken) command.Result {
	k := t.JoinToken(nil, c.Token)
	if k == nil {
		return refuse(fault.NotFound, "join token %s does not exist, or has expired", c.Token)
	}
	t.RemoveJoinToken(k)
	t.Emit(state.Event{Type: "join_token.deleted", Before: string(k.ID)})
	return command.Result{Count: 1}
}

// enroll uses the token up: two joins at once with one token let one program in. The one that was let in
// may ask again with the same key, until the token expires or the program is expelled.
func enroll(t *state.Txn, c command.Enroll) command.Result {
	k := t.JoinToken(nil, c.Token)
	switch {
	case k == nil || !t.Now().Before(k.ExpiresAt):
		return refuseToken()
	case c.Name == "" || c.PublicKey == "":
		return refuse(fault.InvalidRequest, "a program that joins needs a name and a key")
	case k.Used():
		e := t.Enrolment(nil, k.Role, c.Name)
		if k.UsedKey != c.PublicKey || k.UsedBy != c.Name || e == nil || e.JoinToken != k.ID {
			return refuseToken()
		}
		return command.Result{Existing: true, Object: k.Role}
	case k.Name != "" && k.Name != c.Name:
		return refuse(fault.Forbidden, "this join token is for %s %q and not for %q", k.Role, k.Name, c.Name)
	case k.Name == "" && t.Enrolment(nil, k.Role, c.Name) != nil:
		return refuse(fault.Conflict, "the name %q is taken by another %s; join under another name, or make a join token for this name to replace it", c.Name, k.Role)
	}
	next := *k
	next.UsedBy, next.UsedKey = c.Name, c.PublicKey
	t.UseJoinToken(next)
	t.PutEnrolment(state.Enrolment{Role: k.Role, Name: c.Name, JoinToken: k.ID, ValidFrom: t.Now()})
	t.Emit(state.Event{Type: k.Role + ".enrolled", Host: hostOf(k.Role, c.Name), Reason: "join token " + string(k.ID), After: c.Name})
	return command.Result{Object: k.Role}
}

// refuseToken is the same whatever is wrong with the token, so that nothing can be learned from it.
func refuseToken() command.Result {
	return refuse(fault.Unauthenticated, "this join token is unknown, was used or has expired; make a new one (`demiurge host join-token`)")
}

// hostOf is the host of an event about a program; none for a coordinator.
func hostOf(role, name string) id.Host {
	if role == roleAgent {
		return id.Host(name)
	}
	return ""
}

func deleteEnrolment(t *state.Txn, c command.DeleteEnrolment) command.Result {
	e := t.Enrolment(nil, c.Role, c.Name)
	if e == nil {
		return refuse(fault.NotFound, "there is no %s %q that has joined", c.Role, c.Name)
	}
	expel(t, e, c.Reason)
	return command.Result{Count: 1}
}

func expel(t *state.Txn, e *state.Enrolment, reason string) {
	t.RemoveEnrolment(e)
	t.Emit(state.Event{Type: e.Role + ".expelled", Host: hostOf(e.Role, e.Name), Reason: reason, Before: e.Name})
}
