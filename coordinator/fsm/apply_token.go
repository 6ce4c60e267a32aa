package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func putToken(t *state.Txn, c command.PutToken) command.Result {
	if q := t.Request(c.Key); q != nil {
		if q.Kind != state.KindToken || q.Digest != c.Digest {
			return refuse(fault.Conflict, "this idempotency key was used for another request; use a new key")
		}
		return command.Result{Existing: true, Object: q.Objects[0]}
	}
	if c.Token == "" || c.Hash == "" {
		return refuse(fault.InvalidRequest, "a token needs an id and the hash of its secret")
	}
	if t.Token(nil, c.Token) != nil || t.TokenByHash(c.Hash) != nil {
		return refuse(fault.Conflict, "token %s exists already", c.Token)
	}
	t.PutToken(state.Token{
		ID: c.Token, Role: c.Role, Name: c.Name, Host: c.Host, Hash: c.Hash, ExpiresAt: c.ExpiresAt.UTC(),
	})
	if c.Key != "" {
		t.PutRequest(state.Request{
			Key: c.Key, Digest: c.Digest, Kind: state.KindToken, Objects: []string{string(c.Token)}, At: t.Now(),
		})
	}
	t.Emit(state.Event{Type: "token.created", Host: c.Host, Reason: c.Name, After: string(c.Token)})
	return command.Result{Object: string(c.Token)}
}

func deleteToken(t *state.Txn, c command.DeleteToken) command.Result {
	k := t.Token(nil, c.Token)
	if k == nil {
		return refuse(fault.NotFound, "token %s does not exist; `demiurge token list` shows those that do", c.Token)
	}
	revoke(t, k, "")
	return command.Result{Count: 1}
}

func revoke(t *state.Txn, k *state.Token, reason string) {
	t.RemoveToken(k)
	t.Emit(state.Event{Type: "token.revoked", Host: k.Host, Reason: reason, Before: string(k.ID)})
}
