package fsm

import (
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func initCluster(t *state.Txn, c command.InitCluster) command.Result {
	switch have := t.Cluster(); {
	case c.ClusterID == "":
		return refuse(fault.InvalidRequest, "a cluster needs an id")
	case have == c.ClusterID:
		return command.Result{Existing: true, Object: have}
	case have != "":
		return refuse(fault.Conflict, "this cluster is named %s already", have)
	}
	t.SetCluster(c.ClusterID)
	return command.Result{Object: c.ClusterID}
}

func collect(t *state.Txn, c command.Collect) command.Result {
	removed := 0
	// Collected first: removing while ranging would range over two states.
	allocations := t.EndedBefore(c.Before)
	var requests []*state.Request
	for r := range t.Requests(nil) {
		if r.At.Before(c.Before) {
			requests = append(requests, r)
		}
	}
	var tokens []*state.Token
	for k := range t.Tokens(nil) {
		if !k.ExpiresAt.IsZero() && k.ExpiresAt.Before(c.Before) {
			tokens = append(tokens, k)
		}
	}
	var joins []*state.JoinToken
	for k := range t.JoinTokens(nil) {
		if k.ExpiresAt.Before(c.Before) {
			joins = append(joins, k)
		}
	}
	for _, a := range allocations {
		t.RemoveAllocation(a)
		removed++
	}
	for _, r := range requests {
		t.RemoveRequest(r)
		removed++
	}
	for _, k := range tokens {
		revoke(t, k, "expired")
		removed++
	}
	for _, k := range joins {
		t.RemoveJoinToken(k)
		removed++
	}
	return command.Result{Count: removed}
}

func recordEvents(t *state.Txn, c command.RecordEvents) command.Result {
	for _, e := range c.Events {
		record(t, e)
	}
	return command.Result{Count: len(c.Events)}
}

// record puts an event of the proposer's into the feed.
func record(t *state.Txn, e command.Event) {
	t.Emit(state.Event{
		Type: e.Type, At: e.At.UTC(), Reason: e.Reason, Code: e.Code, Organization: e.Organization,
		Allocation: e.Allocation, Gateway: e.Gateway, Host: e.Host, Pool: e.Pool,
	})
}
