package client

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// RaftPeers lists the coordinators with what each has. It is answered without a leader too.
func (c *Client) RaftPeers(ctx context.Context, opts ...CallOption) ([]api.RaftPeer, error) {
	return all[api.RaftPeer](ctx, c, get("v1", "operator", "raft", "peers"), opts)
}

// TransferLeadership makes another coordinator lead; with "" the one that is most up to date.
func (c *Client) TransferLeadership(ctx context.Context, node string, opts ...CallOption) (api.LeadershipTransferred, error) {
	rq := post("v1", "operator", "raft", "transfer")
	rq.body = api.TransferLeadership{ID: node}
	return do[api.LeadershipTransferred](ctx, c, rq, opts)
}

// RemovePeer takes a coordinator out of the cluster; force also one that is alive or needed.
func (c *Client) RemovePeer(ctx context.Context, node string, force bool, opts ...CallOption) error {
	rq := remove("v1", "operator", "raft", "peers", node)
	if force {
		rq.query.Set("force", "true")
	}
	_, err := do[nothing](ctx, c, rq, opts)
	return err
}

// SaveSnapshot writes the whole state to w. What is in w counts only if there is no error.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer, opts ...CallOption) error {
	resp, err := c.send(ctx, get("v1", "operator", "snapshot"), opts)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("cannot receive the whole snapshot: %w", err)
	}
	return nil
}

// RestoreSnapshot replaces the whole state by a saved one. open gives the file from its beginning, and is
// called again when the call is made again.
func (c *Client) RestoreSnapshot(ctx context.Context, open func() (io.ReadCloser, error), opts ...CallOption) (api.SnapshotRestored, error) {
	rq := newCall(http.MethodPut, "v1", "operator", "snapshot")
	rq.open = open
	return do[api.SnapshotRestored](ctx, c, rq, opts)
}

// RotateCA makes a new CA.
func (c *Client) RotateCA(ctx context.Context, in api.RotateCA, opts ...CallOption) (api.CARotated, error) {
	rq := post("v1", "operator", "ca", "rotate")
	rq.body = in
	return do[api.CARotated](ctx, c, rq, opts)
}

// GossipKeys tells which member has which gossip key.
func (c *Client) GossipKeys(ctx context.Context, opts ...CallOption) (api.GossipKeys, error) {
	return do[api.GossipKeys](ctx, c, get("v1", "operator", "gossip", "keys"), opts)
}

// RotateGossip encrypts the gossip with a new key.
func (c *Client) RotateGossip(ctx context.Context, opts ...CallOption) (api.GossipRotated, error) {
	return do[api.GossipRotated](ctx, c, post("v1", "operator", "gossip", "rotate"), opts)
}

// MemberFilter narrows a list of members; empty fields match all.
type MemberFilter struct {
	Role, Status string
}

// Members lists coordinators and agents as the gossip knows them. It is answered without a leader too.
func (c *Client) Members(ctx context.Context, f MemberFilter, opts ...CallOption) ([]api.GossipMember, error) {
	return all[api.GossipMember](ctx, c, filter(get("v1", "members"), "role", f.Role, "status", f.Status), opts)
}

// NodeState reads index and digest of a coordinator's state: the leader's, or with Consistency("stale")
// that of the one that is asked.
func (c *Client) NodeState(ctx context.Context, opts ...CallOption) (api.NodeState, error) {
	return do[api.NodeState](ctx, c, get("v1", "operator", "state"), opts)
}
