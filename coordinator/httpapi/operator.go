package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Operator cares for the coordinators themselves. Errors are faults for the caller. What changes something
// is in the event feed with its meta.
type Operator interface {
	// Members is what this coordinator's gossip knows, by role and name.
	Members() []api.GossipMember
	// NodeID is this coordinator.
	NodeID() string
	// State is the index of this coordinator's state and a digest of it. It reads everything.
	State() (index uint64, hash string)
	// Transfer makes another coordinator lead, the named one or any, and returns once it is known to.
	Transfer(ctx context.Context, meta command.Meta, nodeID string) (leader string, err error)
	// RemovePeer takes a coordinator out. Without force it refuses one that is alive, and one without which
	// the living are no majority.
	RemovePeer(ctx context.Context, meta command.Meta, nodeID string, force bool) error
	// SaveSnapshot writes the state as one file. An error after the first byte leaves half of one.
	SaveSnapshot(ctx context.Context, meta command.Meta, w io.Writer) error
	// RestoreSnapshot replaces the state by a saved one, which is read to its end before anything changes.
	RestoreSnapshot(ctx context.Context, meta command.Meta, r io.Reader) error
	RotateCA(ctx context.Context, meta command.Meta, overlap time.Duration) (api.CARotated, error)
	GossipKeys() api.GossipKeys
	RotateGossip(ctx context.Context, meta command.Meta) (api.GossipRotated, error)
}

const (
	// snapshotLimit bounds the file that a restore takes, and snapshotTime how long it may be on its way.
	snapshotLimit = 1 << 30
	snapshotTime  = 15 * time.Minute
	// rotationTime bounds how long the members of the gossip are waited for, with rotationEach for each of them: it tells
	// of its keys three times, and the gossip holds some tens of such words a second.
	rotationTime = 90 * time.Second
	rotationEach = 200 * time.Millisecond
	// defaultOverlap is long enough for a program that was stopped over a weekend.
	defaultOverlap = 72 * time.Hour
	// peerTime is how long another coordinator may take to say where it is.
	peerTime = time.Second
)

type raftPeersInput struct {
	Consistency string `query:"consistency" enum:"default,stale" doc:"default: the leader answers, if there is one; stale: the coordinator that is asked"`

	authorization string
}

// Resolve keeps the caller's token for asking the other coordinators in its name.
func (in *raftPeersInput) Resolve(hc huma.Context) []error {
	in.authorization = hc.Header("Authorization")
	return nil
}

type raftPeersOutput struct {
	Body api.List[api.RaftPeer]
}

// raftPeers is answered without a leader too: that is when it is asked for.
func (s *Server) raftPeers(ctx context.Context, in *raftPeersInput) (*raftPeersOutput, error) {
	known := map[string]api.GossipMember{}
	for _, m := range s.opts.Operator.Members() {
		if m.Role == "coordinator" {
			known[m.Name] = m
		}
	}
	out := &raftPeersOutput{Body: api.List[api.RaftPeer]{Items: []api.RaftPeer{}}}
	for _, p := range s.opts.Cluster.Peers() {
		row := api.RaftPeer{ID: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.Leader, Status: "unknown"}
		if m, ok := known[p.ID]; ok {
			row.Status, row.Version = m.Status, m.Version
		}
		out.Body.Items = append(out.Body.Items, row)
	}
	s.askIndexes(ctx, in.authorization, out.Body.Items)
	return out, nil
}

// askIndexes asks all coordinators at once where they are. One that does not say it stays without.
func (s *Server) askIndexes(ctx context.Context, authorization string, peers []api.RaftPeer) {
	ctx, cancel := context.WithTimeout(ctx, peerTime)
	defer cancel()
	self := s.opts.Operator.NodeID()
	var asked sync.WaitGroup
	for i := range peers {
		if p := &peers[i]; p.ID == self {
			p.LastIndex = s.opts.Store.View().Index()
		} else if s.opts.Peers != nil {
			asked.Go(func() {
				index, err := s.askIndex(ctx, authorization, p.Address)
				if err != nil {
					s.log.Debug("a coordinator does not say where it is", "coordinator", p.ID, "error", err)
				}
				p.LastIndex = index
			})
		}
	}
	asked.Wait()
}

func (s *Server) askIndex(ctx context.Context, authorization, address string) (uint64, error) {
	target := url.URL{Scheme: "https", Host: address, Path: "/v1/status", RawQuery: "consistency=stale"}
	req, err := http.NewRequestWithContext(ctx, get, target.String(), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", authorization)
	req.Header.Set(headerCaller, callerAddress(ctx))
	resp, err := s.opts.Peers.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("it answers %s", resp.Status)
	}
	var status api.Status
	err = json.NewDecoder(resp.Body).Decode(&status)
	return status.Index, err
}

// callerAddress is the caller's address in the form that other coordinators accept.
func callerAddress(ctx context.Context) string {
	address := callerOf(ctx).address
	if _, err := netip.ParseAddr(address); err != nil {
		return netip.IPv6Unspecified().String()
	}
	return address
}

type transferInput struct {
	Body api.TransferLeadership
}

func (s *Server) transferLeadership(ctx context.Context, in *transferInput) (*changed[api.LeadershipTransferred], error) {
	var c checks
	to := optional(&c, "body.id", in.Body.ID, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	from := s.opts.Operator.NodeID()
	leader, err := s.opts.Operator.Transfer(ctx, s.meta(ctx), string(to))
	if err != nil {
		return nil, err
	}
	return &changed[api.LeadershipTransferred]{
		Status: http.StatusOK, Index: s.opts.Store.View().Index(), Body: api.LeadershipTransferred{From: from, Leader: leader},
	}, nil
}

type removePeerInput struct {
	ID    string `path:"id" doc:"Coordinator"`
	Force bool   `query:"force" doc:"Also one that is alive, and when those that are left and alive are no majority"`
}

func (s *Server) removePeer(ctx context.Context, in *removePeerInput) (*struct{}, error) {
	var c checks
	node := parse(&c, "path.id", in.ID, id.ParseHost)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	return nil, s.opts.Operator.RemovePeer(ctx, s.meta(ctx), string(node), in.Force)
}

// saveSnapshot streams. An answer that cannot be finished is broken off, so that nobody takes it for whole.
func (s *Server) saveSnapshot(ctx context.Context, _ *struct{}) (*stream, error) {
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	meta := s.meta(ctx)
	return &stream{Body: func(hc huma.Context) {
		w := hc.BodyWriter()
		begin := &firstByte{w: w, begin: func() {
			hc.SetHeader("Content-Type", octets)
			hc.SetHeader("Cache-Control", "no-store")
			hc.SetStatus(http.StatusOK)
		}}
		err := s.opts.Operator.SaveSnapshot(ctx, meta, begin)
		switch {
		case err == nil:
		case begin.begun:
			s.log.Warn("cannot finish sending a snapshot", "error", err)
			panic(http.ErrAbortHandler)
		default:
			s.problem(ctx, hc, err)
		}
	}}, nil
}

// problem answers from within a stream that has not begun.
func (s *Server) problem(ctx context.Context, hc huma.Context, err error) {
	p := s.refuse(ctx, err)
	var f *problem
	if !errors.As(p, &f) {
		return
	}
	body, err := json.Marshal(f.Problem)
	if err != nil {
		return // plain fields always encode
	}
	for k, v := range f.GetHeaders() {
		hc.SetHeader(k, v[0])
	}
	hc.SetHeader("Content-Type", api.ProblemContentType)
	hc.SetStatus(f.Status)
	_, _ = hc.BodyWriter().Write(append(body, '\n')) // a client that went away needs no answer
}

// firstByte sends the headers with the first byte, and not before.
type firstByte struct {
	w     io.Writer
	begin func()
	begun bool
}

// Write implements io.Writer.
func (f *firstByte) Write(b []byte) (int, error) {
	if !f.begun {
		f.begun = true
		f.begin()
	}
	return f.w.Write(b)
}

type restoreSnapshotInput struct{ body io.Reader }

// Resolve takes the body as it comes: it is far too long to be held in memory.
func (in *restoreSnapshotInput) Resolve(hc huma.Context) []error {
	in.body = hc.BodyReader()
	return nil
}

func (s *Server) restoreSnapshot(ctx context.Context, in *restoreSnapshotInput) (*changed[api.SnapshotRestored], error) {
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	body := &bounded64{r: in.body, left: snapshotLimit}
	if err := s.opts.Operator.RestoreSnapshot(ctx, s.meta(ctx), body); err != nil {
		if body.left < 0 {
			return nil, fault.Wrap(fault.TooLarge, err, "the snapshot is larger than %d bytes; nothing has changed", snapshotLimit)
		}
		return nil, err
	}
	index := s.opts.Store.View().Index()
	return &changed[api.SnapshotRestored]{Status: http.StatusOK, Index: index, Body: api.SnapshotRestored{Index: index}}, nil
}

// bounded64 fails once more than left bytes were read. left is negative then.
type bounded64 struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded64) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errors.New("the body is too large")
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("the body is too large")
	}
	return n, err
}

type rotateCAInput struct {
	Body api.RotateCA
}

func (s *Server) rotateCA(ctx context.Context, in *rotateCAInput) (*changed[api.CARotated], error) {
	var c checks
	overlap := defaultOverlap
	if in.Body.Overlap != nil {
		overlap = bounded(&c, "body.overlap", in.Body.Overlap, pki.MaxLeafLife)
		if c.err() == nil && overlap < time.Minute {
			c.add("body.overlap", errors.New("every program needs time to renew its certificate: want 1m or more"))
		}
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	out, err := s.opts.Operator.RotateCA(ctx, s.meta(ctx), overlap)
	if err != nil {
		return nil, err
	}
	return &changed[api.CARotated]{Status: http.StatusOK, Index: s.opts.Store.View().Index(), Body: out}, nil
}

type gossipKeysOutput struct{ Body api.GossipKeys }

func (s *Server) gossipKeys(context.Context, *struct{}) (*gossipKeysOutput, error) {
	return &gossipKeysOutput{Body: s.opts.Operator.GossipKeys()}, nil
}

func (s *Server) rotateGossip(ctx context.Context, _ *struct{}) (*changed[api.GossipRotated], error) {
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, rotationTime+time.Duration(len(s.opts.Operator.Members()))*rotationEach)
	defer cancel()
	out, err := s.opts.Operator.RotateGossip(ctx, s.meta(ctx))
	if err != nil {
		return nil, err
	}
	return &changed[api.GossipRotated]{Status: http.StatusOK, Index: s.opts.Store.View().Index(), Body: out}, nil
}

type membersInput struct {
	Consistency string `query:"consistency" enum:"default,stale" doc:"default: the leader answers, if there is one; stale: the coordinator that is asked"`
	Role        string `query:"role" enum:"coordinator,agent" doc:"Only members of this role"`
	Status      string `query:"status" enum:"alive,failed,left" doc:"Only members of this status"`
	Paging
}

type membersOutput struct {
	Body api.List[api.GossipMember]
}

// listMembers is answered without a leader too.
func (s *Server) listMembers(_ context.Context, in *membersInput) (*membersOutput, error) {
	var c checks
	p := paging(&c, in.Paging, memberID)
	if err := c.err(); err != nil {
		return nil, err
	}
	key := func(m api.GossipMember) string { return m.Role + "." + m.Name }
	list := func(after string) iter.Seq[api.GossipMember] {
		all := s.opts.Operator.Members()
		first := sort.Search(len(all), func(i int) bool { return key(all[i]) > after })
		return slices.Values(all[first:])
	}
	keep := func(m api.GossipMember) bool { return like(in.Role, m.Role) && like(in.Status, m.Status) }
	same := func(m api.GossipMember) api.GossipMember { return m }
	return &membersOutput{Body: page(p, list, key, keep, same)}, nil
}

// memberID reads the id of a member in a list: its role, a dot and its name, which is that of a host or a coordinator.
func memberID(s string) (string, error) {
	role, name, _ := strings.Cut(s, ".")
	if _, err := pki.ParseRole(role); err != nil {
		return "", err
	}
	_, err := id.ParseHost(name)
	return s, err
}

type nodeStateInput struct {
	Consistency string `query:"consistency" enum:"default,stale" doc:"default: the leader's; stale: of the coordinator that is asked"`
}

func (s *Server) nodeState(_ context.Context, in *nodeStateInput) (*answer[api.NodeState], error) {
	if in.Consistency != "stale" {
		if err := s.atLeader(); err != nil {
			return nil, err
		}
	}
	index, hash := s.opts.Operator.State()
	return &answer[api.NodeState]{Index: index, Body: api.NodeState{NodeID: s.opts.Operator.NodeID(), Index: index, Hash: hash}}, nil
}

// operatorRoutes are the rows about the coordinators themselves.
func operatorRoutes() []route {
	ok, empty := []int{200}, []int{204}
	none := []fault.Code{}
	changeFaults := []fault.Code{fault.NotFound, fault.Conflict}
	conflicting := []fault.Code{fault.Conflict}
	return []route{
		{get, "/v1/members", forReaders, on((*Server).listMembers), "list-members", "List coordinators and agents as the gossip knows them", ok, none},
		{get, "/v1/operator/raft/peers", forOperators, on((*Server).raftPeers), "list-raft-peers", "List the coordinators with what each has", ok, none},
		{post, "/v1/operator/raft/transfer", forOperators, on((*Server).transferLeadership), "transfer-leadership", "Make another coordinator lead", ok, changeFaults},
		{del, "/v1/operator/raft/peers/{id}", forOperators, on((*Server).removePeer), "remove-raft-peer", "Take a coordinator out of the cluster", empty, changeFaults},
		{get, "/v1/operator/state", forOperators, on((*Server).nodeState), "get-node-state", "Index and digest of a coordinator's state; reads all of it", ok, none},
		{get, "/v1/operator/snapshot", forAdmins, on((*Server).saveSnapshot), "save-snapshot", "Save the whole state as one file", ok, conflicting},
		{put, "/v1/operator/snapshot", forAdmins, on((*Server).restoreSnapshot), "restore-snapshot", "Replace the whole state by a saved one", ok, conflicting},
		{post, "/v1/operator/ca/rotate", forOperators, on((*Server).rotateCA), "rotate-ca", "Make a new CA; certificates of the old one stay good for the overlap", ok, conflicting},
		{get, "/v1/operator/gossip/keys", forOperators, on((*Server).gossipKeys), "list-gossip-keys", "List which member has which gossip key", ok, none},
		{post, "/v1/operator/gossip/rotate", forOperators, on((*Server).rotateGossip), "rotate-gossip", "Encrypt the gossip with a new key", ok, conflicting},
	}
}

// bodyTime is how long a client may take to send the body of a request for this row.
func (rt *route) bodyTime() time.Duration {
	if rt != nil && rt.name == "restore-snapshot" {
		return snapshotTime
	}
	return bodyTime
}

// answersAlone reports whether a row is answered by the asked coordinator when the leader cannot be: it is
// about what is wrong then.
func (rt *route) answersAlone() bool {
	return rt.name == "get-status" || rt.name == "list-members" || rt.name == "list-raft-peers"
}

// octetsMedia documents a file as a body.
func octetsMedia() map[string]*huma.MediaType {
	return map[string]*huma.MediaType{octets: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
}
