package cli_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/demiurge/cli"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// operated is a coordinator that answers the operator's calls.
func operated(t *testing.T) (*httptest.Server, *[]string) {
	t.Helper()
	var asked []string
	answer := func(body any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.String()+" "+string(raw)))
			_ = json.NewEncoder(w).Encode(body)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/operator/raft/peers", answer(api.List[api.RaftPeer]{Items: []api.RaftPeer{
		{ID: "c1", Address: "192.0.2.1:7401", Voter: true, Leader: true, Status: "alive", LastIndex: 77, Version: "1.2.3"},
		{ID: "c2", Address: "192.0.2.2:7401", Status: "failed"},
	}}))
	mux.HandleFunc("POST /v1/operator/raft/transfer", answer(api.LeadershipTransferred{From: "c1", Leader: "c2"}))
	mux.HandleFunc("DELETE /v1/operator/raft/peers/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == "c1" {
			refuse(w, fault.Conflict)
			return
		}
		asked = append(asked, r.Method+" "+r.URL.String())
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1/operator/ca/rotate", answer(api.CARotated{Pin: "new-pin", Previous: "old-pin", Until: at}))
	mux.HandleFunc("POST /v1/operator/gossip/rotate", answer(api.GossipRotated{Key: "0a0b", Previous: "0c0d", Without: []string{"agent.h9"}}))
	mux.HandleFunc("GET /v1/operator/gossip/keys", answer(api.GossipKeys{InUse: "0a0b", Members: []api.MemberGossipKeys{{Member: "agent.h9", Status: "failed", Keys: []string{"0c0d"}}}}))
	mux.HandleFunc("GET /v1/members", answer(api.List[api.GossipMember]{Items: []api.GossipMember{{Role: "agent", Name: "h9", Address: "192.0.2.9:7402", Status: "failed", Since: at, Flaps: 3}}}))
	mux.HandleFunc("GET /v1/operator/snapshot", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "a snapshot") })
	mux.HandleFunc("PUT /v1/operator/snapshot", answer(api.SnapshotRestored{Index: 99}))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server, &asked
}

func TestOperatorCommands(t *testing.T) {
	server, asked := operated(t)
	for _, tt := range []struct {
		args  string
		code  int
		asked string
		says  []string
	}{
		{"operator raft list-peers", 0, "GET /v1/operator/raft/peers", []string{"c1", "192.0.2.1:7401", "77", "failed"}},
		{"operator raft list-peers --stale", 0, "GET /v1/operator/raft/peers?consistency=stale", []string{"c1"}},
		{"operator raft list-peers -o json", 0, "GET /v1/operator/raft/peers", []string{`"last_index": 77`}},
		{"operator raft transfer-leadership", 0, "POST /v1/operator/raft/transfer {}", []string{"c2 leads"}},
		{"operator raft transfer-leadership c3", 0, `POST /v1/operator/raft/transfer {"id":"c3"}`, []string{"c2 leads"}},
		{"operator raft transfer-leadership c3 c4", 2, "", nil},
		{"operator raft remove-peer c2", 0, "DELETE /v1/operator/raft/peers/c2", []string{"took coordinator c2 out"}},
		{"operator raft remove-peer c2 --force", 0, "DELETE /v1/operator/raft/peers/c2?force=true", nil},
		{"operator raft remove-peer c1", 1, "", []string{"conflict"}},
		{"operator raft remove-peer", 2, "", nil},
		{"operator ca rotate --overlap 48h", 0, `POST /v1/operator/ca/rotate {"overlap":"48h0m0s"}`, []string{"new-pin", "old-pin", "2026-01-02T03:04:05Z"}},
		{"operator gossip rotate", 0, "POST /v1/operator/gossip/rotate", []string{"0a0b", "agent.h9"}},
		{"operator gossip keys", 0, "GET /v1/operator/gossip/keys", []string{"agent.h9", "0c0d", "no"}},
		{"members --role agent --status failed", 0, "GET /v1/members?role=agent&status=failed", []string{"h9", "192.0.2.9:7402", "3"}},
		{"operator snapshot restore /nowhere/x --yes", 1, "", []string{"cannot restore"}},
		{"operator snapshot restore / --yes", 1, "", []string{"cannot restore: / is no file"}},
		{"operator snapshot save /", 1, "", []string{"cannot save a snapshot: / is no file"}},
	} {
		*asked = nil
		c := start(t, server, strings.Fields(tt.args)...)
		c.exit(t, tt.code)
		if got := strings.Join(*asked, "; "); got != tt.asked {
			t.Errorf("%s asked for %q, want %q", tt.args, got, tt.asked)
		}
		for _, word := range tt.says {
			if out := c.stdout.String() + c.stderr.String(); !strings.Contains(out, word) {
				t.Errorf("%s does not say %q: %s", tt.args, word, out)
			}
		}
	}
}

func TestSnapshotFiles(t *testing.T) {
	server, asked := operated(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "state.snap")
	if err := os.WriteFile(path, []byte("older"), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, server, "operator", "snapshot", "save", path).exit(t, 0)
	info, err := os.Stat(path)
	data, err2 := os.ReadFile(path)
	if err != nil || err2 != nil || string(data) != "a snapshot" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v, %v", data, info, err, err2)
	}
	start(t, server, "operator", "snapshot", "restore", path).exit(t, 2) // nobody can be asked
	c := start(t, server, "operator", "snapshot", "restore", path, "--yes", "-o", "json")
	c.exit(t, 0)
	if len(*asked) != 1 || (*asked)[0] != "PUT /v1/operator/snapshot a snapshot" || !strings.Contains(c.stdout.String(), `"index": 99`) {
		t.Errorf("asked %q, said %s", *asked, c.stdout.String())
	}
	only(t, dir, "state.snap")
}

// TestSnapshotRestoreAsks: on a terminal nothing but yes goes on.
func TestSnapshotRestoreAsks(t *testing.T) {
	server, asked := operated(t)
	path := filepath.Join(t.TempDir(), "state.snap")
	if err := os.WriteFile(path, []byte("a snapshot"), 0o600); err != nil {
		t.Fatal(err)
	}
	for typed, want := range map[string]int{"yes\n": 0, "y\n": 1, "": 1, "no\n": 1} {
		*asked = nil
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), cli.Options{
			Args: []string{"operator", "snapshot", "restore", path}, Stdin: strings.NewReader(typed), Stdout: &out, Stderr: &errs,
			Terminal: true, Environ: []string{"DEMIURGE_ADDR=" + server.URL},
		})
		if code != want || (len(*asked) == 1) != (want == 0) {
			t.Errorf("%q: exit %d, asked %q: %s", typed, code, *asked, errs.String())
		}
	}
}

// TestSnapshotSaveLeavesNothing: neither an interrupt nor a broken answer leaves a file, or harms the one there.
func TestSnapshotSaveLeavesNothing(t *testing.T) {
	begun := make(chan struct{}, 1)
	breaks := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half of")
		_ = http.NewResponseController(w).Flush()
		if breaks {
			panic(http.ErrAbortHandler)
		}
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	path := filepath.Join(dir, "state.snap")
	if err := os.WriteFile(path, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, server, "operator", "snapshot", "save", path)
	<-begun
	c.interrupt()
	c.exit(t, 1)
	only(t, dir, "state.snap")
	breaks = true
	start(t, server, "operator", "snapshot", "save", path).exit(t, 1)
	only(t, dir, "state.snap")
	if data, err := os.ReadFile(path); err != nil || string(data) != "older" {
		t.Errorf("the file that was there: %q, %v", data, err)
	}
}

func only(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("the directory has %v, %v", entries, err)
	}
}
