package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// scriptedOperator answers as it is told and remembers what it was asked.
type scriptedOperator struct {
	mu      sync.Mutex
	asked   []string // guarded by mu
	fail    error    // guarded by mu: of every change
	saved   []byte   // what SaveSnapshot writes
	broken  bool     // SaveSnapshot fails after saved
	overlap time.Duration
	many    []api.GossipMember               // in the place of the usual members
	patient time.Duration                    // what RotateGossip was given
	size    int64                            // of the body that RestoreSnapshot read
	member  atomic.Pointer[api.GossipMember] // the agent in the gossip, instead of the usual one
}

func (o *scriptedOperator) ask(meta command.Meta, what string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if meta.Actor == "" || meta.Source == "" || meta.At.IsZero() {
		return fmt.Errorf("%s has no origin: %+v", what, meta)
	}
	o.asked = append(o.asked, what)
	return o.fail
}

func (o *scriptedOperator) NodeID() string          { return "c1" }
func (o *scriptedOperator) State() (uint64, string) { return 42, "abc" }
func (o *scriptedOperator) Members() []api.GossipMember {
	if o.many != nil {
		return o.many
	}
	if m := o.member.Load(); m != nil {
		return []api.GossipMember{*m}
	}
	return []api.GossipMember{
		{Role: "agent", Name: "h1", HostID: "h1", Status: "failed", Flaps: 2, Digest: &api.MemberDigest{Generation: 7, Problems: []string{"disk"}}},
		{Role: "coordinator", Name: "c1", Status: "alive", Version: "1.2.3"},
	}
}

func (o *scriptedOperator) Transfer(_ context.Context, meta command.Meta, node string) (string, error) {
	if node == "" {
		node = "c2"
	}
	return node, o.ask(meta, "transfer to "+node)
}

func (o *scriptedOperator) RemovePeer(_ context.Context, meta command.Meta, node string, force bool) error {
	return o.ask(meta, fmt.Sprintf("remove %s %t", node, force))
}

func (o *scriptedOperator) SaveSnapshot(_ context.Context, meta command.Meta, w io.Writer) error {
	if err := o.ask(meta, "save"); err != nil {
		return err
	}
	if _, err := w.Write(o.saved); err != nil {
		return err
	}
	if o.broken {
		return errors.New("the disk broke")
	}
	return nil
}

func (o *scriptedOperator) RestoreSnapshot(_ context.Context, meta command.Meta, r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	o.mu.Lock()
	o.size = n
	o.mu.Unlock()
	if err != nil {
		return err
	}
	return o.ask(meta, "restore")
}

func (o *scriptedOperator) RotateCA(_ context.Context, meta command.Meta, overlap time.Duration) (api.CARotated, error) {
	o.mu.Lock()
	o.overlap = overlap
	o.mu.Unlock()
	return api.CARotated{Pin: "new", Previous: "old", Until: meta.At.Add(overlap)}, o.ask(meta, "ca")
}

func (o *scriptedOperator) GossipKeys() api.GossipKeys {
	return api.GossipKeys{InUse: "0a0b0c0d", Members: []api.MemberGossipKeys{{Member: "agent.h1", Status: "failed", Keys: []string{"0a0b0c0d"}}}}
}

func (o *scriptedOperator) RotateGossip(ctx context.Context, meta command.Meta) (api.GossipRotated, error) {
	end, _ := ctx.Deadline()
	o.mu.Lock()
	o.patient = time.Until(end)
	o.mu.Unlock()
	return api.GossipRotated{Key: "new", Previous: "old", Without: []string{"agent.h1"}}, o.ask(meta, "gossip")
}

// operated is a kit with its scripted operator.
func operated(t *testing.T) (*kit, *scriptedOperator) {
	op := &scriptedOperator{}
	return newKit(t, func(o *Options) { o.Operator = op }), op
}

// All members tell of their keys three times in a rotation, a thousand of them a good deal longer than a few.
func TestARotationHasTimeForManyMembers(t *testing.T) {
	k, op := operated(t)
	rotate := func() time.Duration {
		t.Helper()
		if _, err := k.client(api.RoleOperator).RotateGossip(context.Background()); err != nil {
			t.Fatal(err)
		}
		op.mu.Lock()
		defer op.mu.Unlock()
		return op.patient
	}
	if few := rotate(); few < time.Minute || few > 2*time.Minute {
		t.Errorf("few members have %s", few)
	}
	op.many = make([]api.GossipMember, 1000)
	if many := rotate(); many < 4*time.Minute || many > 5*time.Minute {
		t.Errorf("a thousand members have %s", many)
	}
}

func TestOperatorCalls(t *testing.T) {
	k, op := operated(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		asked, answer      string
	}{
		{post, "/v1/operator/raft/transfer", `{}`, 200, "transfer to c2", `"leader":"c2"`},
		{post, "/v1/operator/raft/transfer", `{"id":"c3"}`, 200, "transfer to c3", `"from":"c1"`},
		{post, "/v1/operator/raft/transfer", `{"id":"C 3"}`, 400, "", "body.id"},
		{post, "/v1/operator/raft/transfer", `{"to":"c3"}`, 400, "", "invalid_request"},
		{del, "/v1/operator/raft/peers/c3", "", 204, "remove c3 false", ""},
		{del, "/v1/operator/raft/peers/c3?force=true", "", 204, "remove c3 true", ""},
		{del, "/v1/operator/raft/peers/..%2f", "", 400, "", "invalid_request"},
		{post, "/v1/operator/ca/rotate", `{}`, 200, "ca", `"pin":"new"`},
		{post, "/v1/operator/ca/rotate", `{"overlap":"2h"}`, 200, "ca", `"previous":"old"`},
		{post, "/v1/operator/ca/rotate", `{"overlap":"1s"}`, 400, "", "body.overlap"},
		{post, "/v1/operator/ca/rotate", `{"overlap":"100000h"}`, 400, "", `"errors":[{"location":"body.overlap","message":"cannot use 100000h0m0s: want a duration from 0s to 2160h0m0s"}]`},
		{post, "/v1/operator/gossip/rotate", "", 200, "gossip", `"without":["agent.h1"]`},
		{get, "/v1/operator/gossip/keys", "", 200, "", `"in_use":"0a0b0c0d"`},
		{get, "/v1/operator/state", "", 200, "", `"node_id":"c1","index":42,"hash":"abc"`},
		{get, "/v1/operator/raft/peers", "", 200, "", `"id":"c1"`},
		{get, "/v1/members?status=failed", "", 200, "", `"flaps":2`},
	} {
		op.asked = nil
		got := k.call(c.method, c.path, k.tokens[api.RoleAdmin], c.body)
		if got.status != c.status || !strings.Contains(string(got.body), c.answer) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
		if asked := strings.Join(op.asked, " "); asked != c.asked {
			t.Errorf("%s %s %s: asked for %q, want %q", c.method, c.path, c.body, asked, c.asked)
		}
	}
	if op.overlap != 2*time.Hour {
		t.Errorf("overlap %s", op.overlap)
	}
	var members api.List[api.GossipMember]
	if err := json.Unmarshal(k.call(get, "/v1/members?role=coordinator", k.tokens[api.RoleReader], "").body, &members); err != nil || len(members.Items) != 1 || members.Items[0].Name != "c1" {
		t.Errorf("%+v, %v", members, err)
	}
}

// TestOperatorCallsWithoutLeader: what changes something needs one; what tells what is wrong does not.
func TestOperatorCallsWithoutLeader(t *testing.T) {
	k, op := operated(t)
	k.cluster.leader.Store(false)
	admin := k.tokens[api.RoleAdmin]
	for _, c := range []struct{ method, path, body string }{
		{post, "/v1/operator/raft/transfer", `{}`},
		{del, "/v1/operator/raft/peers/c3", ""},
		{post, "/v1/operator/ca/rotate", `{}`},
		{post, "/v1/operator/gossip/rotate", ""},
		{get, "/v1/operator/snapshot", ""},
		{put, "/v1/operator/snapshot", "x"},
		{get, "/v1/operator/state", ""},
	} {
		wantProblem(t, k.call(c.method, c.path, admin, c.body), fault.NoLeader)
	}
	if len(op.asked) > 0 {
		t.Errorf("asked for %v", op.asked)
	}
	for _, path := range []string{"/v1/members", "/v1/operator/raft/peers", "/v1/operator/state?consistency=stale"} {
		if got := k.call(get, path, admin, ""); got.status != 200 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func TestSnapshotsPassWhole(t *testing.T) {
	k, op := operated(t)
	admin := k.tokens[api.RoleAdmin]
	op.saved = bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB, above the limit of other bodies
	got := k.call(get, "/v1/operator/snapshot", admin, "")
	if got.status != 200 || !bytes.Equal(got.body, op.saved) || got.header.Get("Content-Type") != octets {
		t.Errorf("save: %d, %d bytes, %v", got.status, len(got.body), got.header)
	}
	if got := k.call(put, "/v1/operator/snapshot", admin, string(op.saved), "Content-Type", octets); got.status != 200 || op.size != int64(len(op.saved)) {
		t.Errorf("restore: %d %s after %d bytes", got.status, got.body, op.size)
	}
	op.fail = fault.New(fault.Conflict, "nothing has been written yet")
	wantProblem(t, k.call(get, "/v1/operator/snapshot", admin, ""), fault.Conflict)
	op.fail = fault.New(fault.InvalidRequest, "it is damaged")
	wantProblem(t, k.call(put, "/v1/operator/snapshot", admin, "x"), fault.InvalidRequest)
}

// TestHalfASnapshotLooksLikeOne: what could not be sent to its end is broken off.
func TestHalfASnapshotLooksLikeOne(t *testing.T) {
	k, op := operated(t)
	op.saved, op.broken = []byte("the first half"), true
	req, err := http.NewRequest(get, k.web.URL+"/v1/operator/snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.tokens[api.RoleAdmin])
	resp, err := k.web.Client().Do(req)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("half a snapshot looks whole")
	}
}

func TestASnapshotIsBounded(t *testing.T) {
	b := &bounded64{r: strings.NewReader("0123456789"), left: 10}
	if all, err := io.ReadAll(b); err != nil || len(all) != 10 {
		t.Errorf("exactly the limit: %d, %v", len(all), err)
	}
	b = &bounded64{r: strings.NewReader("0123456789"), left: 9}
	if _, err := io.ReadAll(b); err == nil || b.left >= 0 {
		t.Errorf("above the limit: %v", err)
	}
}
