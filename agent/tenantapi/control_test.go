package tenantapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// asker is a gateway that asks over its socket.
type asker struct {
	t      testing.TB
	socket string
	web    *http.Client
}

// door opens the socket of a gateway that serves an organization.
func (k *kit) door(g id.Gateway, org id.Organization, at id.Epoch) *asker {
	k.t.Helper()
	dir := filepath.Join(k.dir, string(g))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		k.t.Fatal(err)
	}
	a := &asker{t: k.t, socket: filepath.Join(dir, "control.sock")}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", a.socket)
	}}
	k.t.Cleanup(transport.CloseIdleConnections)
	a.web = &http.Client{Transport: transport}
	k.server.Open(Door{Gateway: g, Socket: a.socket, Organization: org, Epoch: at})
	return a
}

// call asks until somebody listens.
func (a *asker) call(method, path string, body any) (int, []byte) {
	a.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		a.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		r, err := http.NewRequestWithContext(a.t.Context(), method, "http://agent"+path, bytes.NewReader(text))
		if err != nil {
			a.t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		res, err := a.web.Do(r)
		if err != nil {
			if time.Now().After(deadline) {
				a.t.Fatal(err)
			}
			waitFor(a.t)
			continue
		}
		answer, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			a.t.Fatal(err)
		}
		return res.StatusCode, answer
	}
}

// waitFor is the pause between two tries.
func waitFor(testing.TB) { time.Sleep(2 * time.Millisecond) }

// may asks what somebody may do in a project.
func (a *asker) may(token, action, project string) api.Checked {
	a.t.Helper()
	status, body := a.call(http.MethodPost, "/v1/check", api.Check{Authorization: []string{"Bearer " + token}, Action: action, ProjectID: project})
	var out api.Checked
	if err := json.Unmarshal(body, &out); status != http.StatusOK || err != nil {
		a.t.Fatalf("%d %s", status, body)
	}
	return out
}

// On a host without HTTPS nobody can prove who they are, and whoever asks is told what is missing: it is nothing that a
// second try, or the log, would help with.
func TestAHostWithoutHTTPSSaysSoAtEveryDoor(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Public = Public{} })
	a := k.door("gw-aaaaaaaaaa", ours, epoch)
	for what, headers := range map[string][]string{"nobody": nil, "a member": {"Bearer " + k.jwt("ada")}} {
		status, body := a.call(http.MethodPost, "/v1/check", api.Check{Authorization: headers, Action: "room:write", ProjectID: "drawing"})
		var p api.Problem
		if err := json.Unmarshal(body, &p); err != nil || status != http.StatusNotFound || !strings.Contains(p.Detail, "nginx.listen_tls") {
			t.Errorf("%s: %d %s", what, status, body)
		}
	}
	if _, err := k.server.Containers(t.Context(), ours); err == nil || !strings.Contains(err.Error(), "nginx.listen_tls") {
		t.Errorf("containers: %v", err)
	}
}

func TestP6_AProjectsRoleOpensItsDoor(t *testing.T) {
	k := newKit(t)
	a := k.door("gw-aaaaaaaaaa", ours, epoch)
	bob := k.jwt("bob")
	if got := a.may(bob, "room:write", "drawing"); got.Allowed || !got.Known || got.UserID != "bob" || got.Username != "BOB" {
		t.Fatalf("before the grant: %+v", got)
	}
	before := a.may(bob, "room:write", "drawing").Version
	if got := k.do(ours, http.MethodPut, "/permissions/projects/drawing/users/bob/grants/project:member", "", bearer(k.jwt("ada"))); got.status != http.StatusOK {
		t.Fatalf("the grant: %d %s", got.status, got.body)
	}
	// Who waits for a change is told.
	status, body := a.call(http.MethodGet, "/v1/changes?wait=20s&version="+strconv.FormatUint(before, 10), nil)
	var c api.Changes
	if err := json.Unmarshal(body, &c); status != http.StatusOK || err != nil || c.Version <= before {
		t.Fatalf("changes: %d %s", status, body)
	}
	if got := a.may(bob, "room:write", "drawing"); !got.Allowed || got.Version != c.Version || got.GoodFor > api.Duration(time.Second) {
		t.Errorf("with the role: %+v", got)
	}
	for what, got := range map[string]api.Checked{
		"another project": a.may(bob, "room:write", "other"), "another action": a.may(bob, "container:create", "drawing"),
		"the whole organization": a.may(bob, "room:write", ""), "a stranger": a.may(k.jwt("mallory"), "room:write", "drawing"),
		"garbage": a.may("x", "room:write", "drawing"),
	} {
		if got.Allowed {
			t.Errorf("%s: %+v", what, got)
		}
	}
	k.serve(ours, "ada=owner")
	if got := a.may(bob, "room:write", "drawing"); got.Allowed {
		t.Errorf("a removed member: %+v", got)
	}
}

func TestP1_AGatewayCanAskAndNothingElse(t *testing.T) {
	k := newKit(t)
	a, b := k.door("gw-aaaaaaaaaa", ours, epoch), k.door("gw-bbbbbbbbbb", theirs, epoch)
	for _, path := range []string{"/v1/sign", "/v1/tokens", "/oauth/token", "/permissions", "/oauth/clients", "/"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if status, body := a.call(method, path, map[string]any{"user_id": "ada"}); status != http.StatusNotFound {
				t.Errorf("%s %s: %d %s", method, path, status, body)
			}
		}
	}
	// Each socket is for its own organization.
	ada := k.jwt("ada")
	if !a.may(ada, "room:read", "").Allowed || b.may(ada, "room:read", "").Allowed {
		t.Error("the answers are not of the gateway's organization")
	}
	// A gateway whose organization is over learns nothing more.
	k.server.Open(Door{Gateway: "gw-aaaaaaaaaa", Socket: a.socket, Organization: ours, Epoch: epoch + 1})
	eventually(t, "the epoch is over", func() bool {
		status, _ := a.call(http.MethodPost, "/v1/check", api.Check{Action: "room:read"})
		return status == http.StatusConflict
	})
	k.server.Shut("gw-bbbbbbbbbb")
	eventually(t, "nobody listens", func() bool {
		_, err := net.Dial("unix", b.socket)
		return err != nil
	})
}

// A gateway that is granted again and again at once has its door in the end: of two that make the same socket the
// first must not take away what the second made.
func TestADoorThatIsOpenedAgainAtOnceStaysOpen(t *testing.T) {
	k := newKit(t)
	a := k.door("gw-aaaaaaaaaa", ours, epoch)
	for n := range 300 {
		if n%3 == 2 {
			k.server.Shut("gw-aaaaaaaaaa")
		}
		k.server.Open(Door{Gateway: "gw-aaaaaaaaaa", Socket: a.socket, Organization: ours, Epoch: epoch + id.Epoch(n%2)})
	}
	k.server.Open(Door{Gateway: "gw-aaaaaaaaaa", Socket: a.socket, Organization: ours, Epoch: epoch})
	ada := k.jwt("ada")
	if !a.may(ada, "room:read", "").Allowed {
		t.Error("the owner may not")
	}
	a.web.CloseIdleConnections() // what comes next finds who listens now
	if !a.may(ada, "room:read", "").Allowed {
		t.Error("the owner may not, on another connection")
	}
}

// A socket that cannot be made now is made when it can be.
func TestADoorIsMadeWhenItCanBe(t *testing.T) {
	k := newKit(t)
	dir := filepath.Join(k.dir, "gw-aaaaaaaaaa")
	inTheWay := filepath.Join(dir, "control.sock", "x")
	if err := os.MkdirAll(inTheWay, 0o700); err != nil { // a directory with something in it is not removed
		t.Fatal(err)
	}
	a := k.door("gw-aaaaaaaaaa", ours, epoch)
	eventually(t, "it is said", func() bool { return strings.Contains(k.log.String(), "a gateway's socket cannot be made") })
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if !a.may(k.jwt("ada"), "room:read", "").Allowed {
		t.Error("the owner may not")
	}
}

func TestP16_TriesAreCountedByTheCallersOwnAddress(t *testing.T) {
	k := newKit(t)
	try := func(from string) int {
		return k.do(ours, http.MethodPost, "/oauth/token", "grant_type=client_credentials&client_id=cl-aaaaaaaaaaaaaaaaaaaaaaaaaa&client_secret=x", func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("X-Real-IP", from)
			r.Header.Set("X-Forwarded-For", "203.0.113."+strconv.Itoa(int(time.Now().UnixNano()%200)))
		}).status
	}
	eventually(t, "the one who guesses has to wait", func() bool { return try("192.0.2.66") == http.StatusTooManyRequests })
	if status := try("192.0.2.67"); status != http.StatusUnauthorized {
		t.Errorf("somebody else: %d", status)
	}
}
