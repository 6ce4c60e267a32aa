package httpapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestEventList(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	ctx, reader := context.Background(), k.client(api.RoleReader)
	a, _, err := k.client(api.RolePlatform).Start(ctx, start(k.organization()))
	if err != nil {
		t.Fatal(err)
	}
	all, err := reader.ListEvents(ctx, client.EventQuery{})
	if err != nil || len(all) < 8 {
		t.Fatalf("%d events, %v", len(all), err)
	}
	of, err := reader.ListEvents(ctx, client.EventQuery{Topics: []string{"allocation", "organization"}})
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, e := range of {
		types = append(types, e.Type)
	}
	if want := []string{"organization.created", "allocation.reserved", "allocation.active"}; !slices.Equal(types, want) {
		t.Errorf("events %v, want %v", types, want)
	}
	reserved := of[1]
	if reserved.AllocationID != a.AllocationID || reserved.OrganizationID != a.OrganizationID || reserved.Index != a.Epoch || reserved.Topic != "allocation" ||
		reserved.After != api.AllocationReserved || !strings.HasPrefix(reserved.Actor, "tk-") || reserved.Source != "127.0.0.1" {
		t.Errorf("event %+v", reserved)
	}
	later, err := reader.ListEvents(ctx, client.EventQuery{After: reserved.ID, Topics: []string{"allocation"}})
	if err != nil || len(later) != 1 || later[0].Type != "allocation.active" {
		t.Errorf("after %s: %+v, %v", reserved.ID, later, err)
	}
	newer, err := reader.ListEvents(ctx, client.EventQuery{Index: reserved.Index})
	if err != nil || len(newer) == 0 || newer[0].Index <= reserved.Index {
		t.Errorf("newer than index %d: %+v, %v", reserved.Index, newer, err)
	}
	var paged []string
	for cursor := ""; ; {
		var page api.List[api.Event]
		if err := json.Unmarshal(k.call(get, "/v1/events?limit=3&cursor="+cursor, k.tokens[api.RoleReader], "").body, &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			paged = append(paged, e.ID)
		}
		if cursor = page.Cursor; cursor == "" {
			break
		}
	}
	for i, e := range all {
		if i >= len(paged) || paged[i] != e.ID {
			t.Fatalf("pages %v differ at %d from %s", paged, i, e.ID)
		}
	}
}

func TestEventListWaits(t *testing.T) {
	k := newKit(t)
	index := k.store.LastEvent().Index
	read := k.blocked(fmt.Sprintf("/v1/events?index=%d&wait=4m&topic=host", index))
	k.organization() // another topic
	still(t, read, "an event of another topic")
	k.withGateways(0)
	got := soon(t, read)
	if !strings.Contains(string(got.body), "host.registered") || strings.Contains(string(got.body), "organization.") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := soon(t, k.blocked(fmt.Sprintf("/v1/events?index=%d&wait=10ms", k.store.LastEvent().Index))); string(got.body) != "{\"items\":[]}\n" {
		t.Errorf("after the wait: %s", got.body)
	}
}

func TestFollowResumes(t *testing.T) {
	k := newKit(t)
	k.withGateways(3)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	platform, reader := k.client(api.RolePlatform), k.client(api.RoleReader)
	if _, _, err := platform.Start(ctx, start(k.organization())); err != nil {
		t.Fatal(err)
	}
	take := func(q client.EventQuery, n int, more func(i int)) (types []string, last string) {
		for e, err := range reader.Follow(ctx, q) {
			if err != nil {
				t.Fatal(err)
			}
			types, last = append(types, e.Type), e.ID
			more(len(types))
			if len(types) == n {
				break
			}
		}
		return types, last
	}
	q := client.EventQuery{Topics: []string{"allocation"}}
	types, last := take(q, 3, func(i int) {
		if i == 2 { // the kept ones have come, now something happens
			if _, _, err := platform.Start(ctx, start(k.organization())); err != nil {
				t.Error(err)
			}
		}
	})
	if want := []string{"allocation.reserved", "allocation.active", "allocation.reserved"}; !slices.Equal(types, want) {
		t.Errorf("followed %v, want %v", types, want)
	}
	q.After = last
	if types, _ = take(q, 1, func(int) {}); !slices.Equal(types, []string{"allocation.active"}) {
		t.Errorf("resumed with %v", types)
	}
}

// stream opens the event stream and gives its lines.
func (k *kit) stream(ctx context.Context, headers ...string) (*http.Response, *bufio.Scanner) {
	k.t.Helper()
	req, err := http.NewRequestWithContext(ctx, get, k.web.URL+"/v1/events", nil)
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.tokens[api.RoleReader])
	req.Header.Set("Accept", eventStream)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp, bufio.NewScanner(resp.Body)
}

func TestEventStreamOnTheWire(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, lines := k.stream(ctx, "Last-Event-ID", fmt.Sprintf("%d.%d", k.store.LastEvent().Index, k.store.LastEvent().Seq))
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != eventStream || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	for lines.Scan() && lines.Text() != ": alive" {
	}
	k.organization()
	var event []string
	for lines.Scan() {
		if text := lines.Text(); text != "" && !strings.HasPrefix(text, ":") {
			event = append(event, text)
		}
		if len(event) == 3 {
			break
		}
	}
	last := k.store.LastEvent()
	if len(event) != 3 || event[0] != fmt.Sprintf("id: %d.%d", last.Index, last.Seq) || event[1] != "event: organization.created" || !strings.HasPrefix(event[2], `data: {"id":"`) {
		t.Errorf("the stream says %q", event)
	}
	k.server.Drain()
	for lines.Scan() {
	}
	if ctx.Err() != nil {
		t.Error("the stream did not end with the server")
	}
}

// TestSecurityHeldAnswersEndWithTheToken: who holds a stream or a read open learns nothing more once the token is revoked or
// has expired.
func TestSecurityHeldAnswersEndWithTheToken(t *testing.T) {
	held := map[string]func(k *kit, ctx context.Context, secret string) (answered <-chan bool){
		"stream": func(k *kit, ctx context.Context, secret string) <-chan bool {
			resp, lines := k.stream(ctx, "Authorization", "Bearer "+secret)
			if resp.StatusCode != http.StatusOK {
				return nil
			}
			ended := make(chan bool, 1)
			go func() {
				for lines.Scan() {
				}
				ended <- ctx.Err() == nil
			}()
			return ended
		},
	}
	for name, path := range map[string]string{"list": "/v1/organizations", "events": "/v1/events"} {
		held[name] = func(k *kit, _ context.Context, secret string) <-chan bool {
			first := k.call(get, path, secret, "")
			if first.status != http.StatusOK {
				return nil
			}
			k.tokens[api.RoleAdmin] = secret
			read, ended := k.blocked(path+"?wait=5m&index="+first.header.Get(api.HeaderIndex)), make(chan bool, 1)
			go func() { ended <- (<-read).problem.Code == string(fault.Unauthenticated) }()
			return ended
		}
	}
	for name, hold := range held {
		wait := func(ended <-chan bool) {
			t.Helper()
			select {
			case right := <-ended:
				if !right {
					t.Errorf("%s: not refused", name)
				}
			case <-time.After(patience):
				t.Errorf("%s: goes on", name)
			}
		}
		k := newKit(t)
		ctx, cancel := context.WithCancel(context.Background())
		secret := k.makeToken(api.RoleOperator, time.Time{})
		ended := hold(k, ctx, secret)
		sum := sha256.Sum256([]byte(secret))
		k.apply(command.DeleteToken{Meta: k.meta(), Token: k.store.View().TokenByHash(hex.EncodeToString(sum[:])).ID})
		wait(ended)
		ended = nil
		for life := 250 * time.Millisecond; ended == nil; life *= 4 { // a slow machine may not get there in time
			ended = hold(k, ctx, k.makeToken(api.RoleOperator, k.now().Add(life)))
		}
		wait(ended)
		cancel()
	}
}

func TestEventStreamTellsWhatItMissed(t *testing.T) {
	k := newKit(t)
	for range 14 { // more than the feed keeps
		cmd := command.RecordEvents{Meta: k.meta()}
		for range 5000 {
			cmd.Events = append(cmd.Events, command.Event{Type: "host.noise", At: k.now()})
		}
		k.apply(cmd)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, lines := k.stream(ctx, "Last-Event-ID", "1.1")
	for lines.Scan() {
		if strings.Contains(lines.Text(), "no longer kept") {
			return
		}
		if strings.HasPrefix(lines.Text(), "data:") {
			break
		}
	}
	t.Error("the stream went over a gap in silence")
}

func TestEventStreamRefusesNonsense(t *testing.T) {
	k := newKit(t)
	resp, _ := k.stream(context.Background(), "Last-Event-ID", "yesterday")
	wantProblem(t, readReply(t, resp), fault.InvalidRequest)
	for _, err := range k.client(agentCaller).Follow(context.Background(), client.EventQuery{}) {
		if !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("an agent follows: %v", err)
		}
	}
}
