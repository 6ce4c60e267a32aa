package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// Types of the events that tell what an operator did to the coordinators.
const (
	eventTransfer = "coordinator.transfer"
	eventRemoved  = "coordinator.removed"
	eventSaved    = "snapshot.saved"
	eventRestored = "snapshot.restored"
)

// transferTime bounds how long the next leader is waited for.
const transferTime = 10 * time.Second

// operator is the coordinator as its operator sees it.
type operator struct {
	*Coordinator
	turn *sync.Mutex // held by a rotation: two at once would undo each other
}

// NodeID names this coordinator.
func (o operator) NodeID() string { return o.opts.Config.NodeID }

// Members gives the gossip's members.
func (o operator) Members() []api.GossipMember {
	var out []api.GossipMember
	for _, m := range o.gossip.Members() {
		row := api.GossipMember{
			Role: string(m.Role), Name: m.Name, HostID: string(m.Host), Address: m.Address.String(), Status: string(m.Status),
			Since: m.Since.UTC(), Flaps: m.Flaps, Version: m.Version,
		}
		if free, err := strconv.ParseUint(m.Tags[tagLow], 10, 64); err == nil && m.Role == gossip.RoleCoordinator {
			row.StorageLow = fmt.Sprintf("%d MiB free", free)
		}
		if m.Role == gossip.RoleAgent && m.DigestError == "" {
			d := m.Digest
			row.Digest = &api.MemberDigest{
				Generation: d.Generation, Gateways: d.Gateways, RouteDigest: d.RouteDigest, LoadPercent: d.LoadPercent,
				DiskFreeMiB: d.DiskFreeMiB, Problems: []string{},
			}
			for _, p := range d.Problems {
				row.Digest.Problems = append(row.Digest.Problems, string(p))
			}
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b api.GossipMember) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// record puts an event into the feed. It comes before what it tells of, so that nothing is done without one.
func (o operator) record(ctx context.Context, meta command.Meta, kind, reason string) error {
	result, _, err := o.propose.Propose(ctx, command.RecordEvents{
		Meta: meta, Events: []command.Event{{Type: kind, At: meta.At, Reason: reason}},
	})
	if err != nil {
		return unknown(err)
	}
	if result.Err != nil {
		return result.Err
	}
	return nil
}

// unknown words an outcome that is not known for the caller.
func unknown(err error) error {
	var f *fault.Error
	if err == nil || errors.As(err, &f) {
		return err
	}
	return fault.Wrap(fault.NoLeader, err, "it is not known whether the change took effect; look, and make the same call again")
}

// successor chooses who is to lead after self: the wanted one, or with "" any; "" leaves the choice to Raft. One whose disk
// is nearly full would take nothing new as leader.
func successor(self, wanted string, peers []consensus.Peer, members []gossip.Member) (string, error) {
	low, fit := map[string]bool{}, map[string]bool{}
	for _, m := range members {
		if m.Role == gossip.RoleCoordinator && m.Status == gossip.StatusAlive {
			low[m.Name], fit[m.Name] = m.Tags[tagLow] != "", m.Tags[tagState] == stateFit
		}
	}
	if wanted != "" {
		at := slices.IndexFunc(peers, func(p consensus.Peer) bool { return p.ID == wanted })
		switch {
		case at < 0:
			return "", fault.New(fault.NotFound, "there is no coordinator %q; `demiurge operator raft list-peers` shows those that are", wanted)
		case !peers[at].Voter:
			return "", fault.New(fault.Conflict, "coordinator %q has no vote yet and cannot lead; wait until it has caught up", wanted)
		case low[wanted]:
			return "", fault.New(fault.Conflict, "the disk of coordinator %q is nearly full: while it led, nothing new would be allocated; free some space there, or name another one", wanted)
		}
		return wanted, nil
	}
	full, next := 0, ""
	for _, p := range peers {
		switch {
		case p.ID == self || !p.Voter:
		case low[p.ID]:
			full++
		case fit[p.ID] && next == "":
			next = p.ID
		}
	}
	if full > 0 && next == "" {
		return "", fault.New(fault.Conflict, "the disk of every other coordinator that could lead is nearly full; free some space there first: `demiurge status` names them")
	}
	if full > 0 {
		return next, nil
	}
	return "", nil
}

// Transfer makes another coordinator lead.
func (o operator) Transfer(ctx context.Context, meta command.Meta, nodeID string) (string, error) {
	self := o.NodeID()
	if nodeID == self {
		return self, nil
	}
	nodeID, err := successor(self, nodeID, o.node.Stats().Peers, o.gossip.Members())
	if err != nil {
		return "", err
	}
	to := cmp.Or(nodeID, "the most up to date one")
	if err := o.record(ctx, meta, eventTransfer, "leadership is to go from "+self+" to "+to); err != nil {
		return "", err
	}
	if err := o.node.TransferLeadership(ctx, nodeID); err != nil {
		if fault.CodeOf(err) == fault.Internal {
			return "", fault.Wrap(fault.Conflict, err, "cannot make %s lead: it does not answer, or is too far behind; look at `demiurge operator raft list-peers`", to)
		}
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, transferTime)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if leader, _ := o.node.Leader(); leader != "" && leader != self {
			return leader, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fault.Wrap(fault.NoLeader, ctx.Err(), "leadership was given up, and it is not known yet who took it; look at `demiurge operator raft list-peers`")
		}
	}
}

// RemovePeer takes a coordinator out of the cluster and of the gossip.
func (o operator) RemovePeer(ctx context.Context, meta command.Meta, nodeID string, force bool) error {
	peers := o.node.Stats().Peers
	alive := map[string]bool{o.NodeID(): true}
	for _, m := range o.gossip.Members() {
		if m.Role == gossip.RoleCoordinator && m.Status == gossip.StatusAlive {
			alive[m.Name] = true
		}
	}
	if err := removable(nodeID, peers, alive, force); err != nil {
		return err
	}
	if err := o.record(ctx, meta, eventRemoved, "coordinator "+nodeID+" is taken out"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, transferTime)
	defer cancel()
	if err := o.node.RemovePeer(ctx, nodeID); err != nil {
		return err
	}
	if !alive[nodeID] {
		if err := o.gossip.Forget(ctx, gossip.RoleCoordinator, nodeID); err != nil {
			o.log.Info("a coordinator that was taken out stays in the list of the gossip for a while", "coordinator", nodeID, "error", err)
		}
	}
	return nil
}

// removable says why a coordinator must not be taken out.
func removable(nodeID string, peers []consensus.Peer, alive map[string]bool, force bool) error {
	at := slices.IndexFunc(peers, func(p consensus.Peer) bool { return p.ID == nodeID })
	switch {
	case at < 0:
		return fault.New(fault.NotFound, "there is no coordinator %q; `demiurge operator raft list-peers` shows those that are", nodeID)
	case len(peers) == 1:
		return fault.New(fault.Conflict, "cannot take out coordinator %q: it is the only one", nodeID)
	case force:
		return nil
	}
	voters, living := 0, 0
	for _, p := range peers {
		if p.Voter && p.ID != nodeID {
			voters++
			if alive[p.ID] {
				living++
			}
		}
	}
	if 2*living <= voters {
		return fault.New(fault.Conflict, "cannot take out coordinator %q: of the %d that are left with a vote only %d are alive, which is no majority; bring one back or add one first", nodeID, voters, living)
	}
	if alive[nodeID] {
		return fault.New(fault.Conflict, "cannot take out coordinator %q: it is alive and would be brought in again at once; stop it first", nodeID)
	}
	return nil
}

// SaveSnapshot writes the state as one file.
func (o operator) SaveSnapshot(ctx context.Context, meta command.Meta, w io.Writer) error {
	if err := o.record(ctx, meta, eventSaved, "the whole state is read as a snapshot"); err != nil {
		return err
	}
	return o.node.SaveSnapshot(ctx, w)
}

// RestoreSnapshot replaces the state by a saved one. The event comes after it: one before would be replaced
// too.
func (o operator) RestoreSnapshot(ctx context.Context, meta command.Meta, r io.Reader) error {
	o.turn.Lock() // certificates and keys must not change between the conversion and the restore
	defer o.turn.Unlock()
	if err := o.node.RestoreSnapshot(ctx, r); err != nil {
		return err
	}
	return o.record(context.WithoutCancel(ctx), meta, eventRestored, "the state was replaced by a saved one")
}

// convertSnapshot checks that a saved state belongs to this cluster, and keeps the present certificates.
func (c *Coordinator) convertSnapshot(in io.Reader, out io.Writer) error {
	return fsm.Convert(in, out, time.Now().UTC(), func(cluster string, saved *state.Trust) (*state.Trust, error) {
		if cluster != "" && cluster != c.trust.Cluster() {
			return nil, fmt.Errorf("it is of cluster %s and this is cluster %s", cluster, c.trust.Cluster())
		}
		return c.trust.Restored(saved)
	})
}

// signed proposes in the name of whoever asked.
type signed struct {
	*proposer
	meta command.Meta
}

// Propose puts a change of the trust into the log with its true origin.
func (s signed) Propose(ctx context.Context, c command.Command) (command.Result, uint64, error) {
	if put, ok := c.(command.PutTrust); ok {
		put.Actor, put.Source = s.meta.Actor, s.meta.Source
		c = put
	}
	return s.proposer.Propose(ctx, c)
}

// RotateCA makes a new CA.
func (o operator) RotateCA(ctx context.Context, meta command.Meta, overlap time.Duration) (api.CARotated, error) {
	o.turn.Lock()
	defer o.turn.Unlock()
	before := o.trust.Bundle().Pin()
	if err := o.trust.Rotate(ctx, signed{o.propose, meta}, overlap); err != nil {
		return api.CARotated{}, unknown(err)
	}
	return api.CARotated{Pin: o.trust.Bundle().Pin().String(), Previous: before.String(), Until: meta.At.Add(overlap).UTC()}, nil
}

// GossipKeys tells who has which key.
func (o operator) GossipKeys() api.GossipKeys {
	out := api.GossipKeys{Members: []api.MemberGossipKeys{}}
	if ring := o.gossip.Keyring(); len(ring) > 0 {
		out.InUse = string(ring[0].Fingerprint())
	}
	for _, m := range o.gossip.Keys().Members {
		row := api.MemberGossipKeys{Member: m.Member, Status: string(m.Status), Keys: []string{}}
		for _, k := range m.Keys {
			row.Keys = append(row.Keys, string(k))
		}
		out.Members = append(out.Members, row)
	}
	return out
}

// RotateGossip replaces the key of the gossip. The keys in the state go along with those in the gossip, so
// that a member that is away finds there what it needs to come back. A rotation that was interrupted leaves
// two keys, with which everybody can talk; the next one begins by dropping the one that is not in use.
func (o operator) RotateGossip(ctx context.Context, meta command.Meta) (api.GossipRotated, error) {
	o.turn.Lock()
	defer o.turn.Unlock()
	say := signed{o.propose, meta}
	keep := func(keys ...gossip.Key) error {
		texts := make([]string, len(keys))
		for i, k := range keys {
			texts[i] = k.Text()
		}
		if slices.Equal(o.trust.Keyring(), texts) {
			return nil
		}
		return unknown(o.trust.PutKeyring(ctx, say, texts))
	}
	return rotateGossip(ctx, o.gossip, keep)
}

// keyPool is the keys of the gossip, here and at all members.
type keyPool interface {
	Keyring() []gossip.Key
	InstallKey(ctx context.Context, key gossip.Key) (gossip.KeyReport, error)
	UseKey(ctx context.Context, key gossip.Fingerprint, force bool) (gossip.KeyReport, error)
	RemoveKey(ctx context.Context, key gossip.Fingerprint, force bool) (gossip.KeyReport, error)
}

// rotateGossip makes the steps of a rotation. Whoever follows the state takes what keep puts into it at any time after, in
// the middle of the next step too.
func rotateGossip(ctx context.Context, pool keyPool, keep func(...gossip.Key) error) (api.GossipRotated, error) {
	ring := pool.Keyring()
	if len(ring) == 0 {
		return api.GossipRotated{}, fault.New(fault.Conflict, "cannot rotate the gossip key: the gossip has none")
	}
	old, next := ring[0], gossip.NewKey()
	if len(ring) > 1 { // of which the interrupted rotation may have told some members already that it is used
		if _, err := pool.UseKey(ctx, old.Fingerprint(), true); err != nil {
			return api.GossipRotated{}, stuck(err)
		}
		// The state first: a coordinator that follows it would take a key again that it was just told to drop.
		if err := keep(old); err != nil {
			return api.GossipRotated{}, err
		}
		for _, left := range ring[1:] {
			if _, err := pool.RemoveKey(ctx, left.Fingerprint(), true); err != nil {
				return api.GossipRotated{}, stuck(err)
			}
		}
	}
	if err := keep(old, next); err != nil {
		return api.GossipRotated{}, err
	}
	if _, err := pool.InstallKey(ctx, next); err != nil {
		return api.GossipRotated{}, stuck(err)
	}
	if _, err := pool.UseKey(ctx, next.Fingerprint(), true); err != nil {
		return api.GossipRotated{}, stuck(err)
	}
	if err := keep(next); err != nil { // before the key is dropped, here too
		return api.GossipRotated{}, err
	}
	report, err := pool.RemoveKey(ctx, old.Fingerprint(), true)
	if err != nil {
		return api.GossipRotated{}, stuck(err)
	}
	_, away := report.Without(next.Fingerprint())
	if away == nil {
		away = []string{}
	}
	return api.GossipRotated{Key: string(next.Fingerprint()), Previous: string(old.Fingerprint()), Without: away}, nil
}

// stuck is a rotation that could not go on. Nobody is cut off by it.
func stuck(err error) error {
	return fault.Wrap(fault.Conflict, err, "the rotation stopped half-way: %v; everybody can still talk, and the next rotation begins anew", err)
}

// followKeys takes over the gossip keys of the state: they were rotated while this coordinator was away.
func (c *Coordinator) followKeys(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var taken []string
	for {
		if c.rotation.TryLock() { // while this coordinator itself rotates, its own keys are ahead of the state
			if texts := c.trust.Keyring(); !slices.Equal(texts, taken) {
				if err := c.gossip.FollowKeys(texts); err != nil {
					c.log.Error("cannot take over the gossip keys", "error", err)
				} else {
					taken = texts
				}
			}
			c.rotation.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
