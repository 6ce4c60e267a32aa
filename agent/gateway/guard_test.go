package gateway

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// scribe is an agent that is told by a test who may do what.
type scribe struct {
	t      testing.TB
	path   string
	server *http.Server

	mu      sync.Mutex
	allowed map[string]bool // "authorization action project"
	version uint64
	changed chan struct{}
	asked   int
	goodFor time.Duration
}

func newScribe(t testing.TB) *scribe {
	t.Helper()
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &scribe{t: t, path: filepath.Join(dir, "c"), allowed: map[string]bool{}, version: 1, changed: make(chan struct{}), goodFor: time.Hour}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *scribe) start() {
	s.t.Helper()
	l, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/check", s.check)
	mux.HandleFunc("GET /v1/changes", s.changes)
	s.server = &http.Server{Handler: mux}
	go func() { _ = s.server.Serve(l) }() // ended by stop
}

func (s *scribe) stop() { _ = s.server.Close() }

func (s *scribe) check(w http.ResponseWriter, r *http.Request) {
	var c api.Check
	_ = json.NewDecoder(r.Body).Decode(&c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	out := api.Checked{Version: s.version, GoodFor: api.Duration(s.goodFor), Reason: "told so"}
	if len(c.Authorization) > 0 {
		out.Known, out.UserID = true, c.Authorization[0]
		out.Allowed = s.allowed[c.Authorization[0]+" "+c.Action+" "+c.ProjectID]
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *scribe) changes(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	changed, version := s.changed, s.version
	s.mu.Unlock()
	if r.URL.Query().Get("version") == "1" && version == 1 {
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
	s.mu.Lock()
	version = s.version
	s.mu.Unlock()
	if r.URL.Query().Get("version") == "2" && version == 2 {
		<-r.Context().Done()
		return
	}
	_ = json.NewEncoder(w).Encode(api.Changes{Version: version})
}

func (s *scribe) set(who string, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed[who] = yes
}

// change makes another version.
func (s *scribe) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *scribe) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func TestTheGuardAsksOnceForEachVersion(t *testing.T) {
	s := newScribe(t)
	s.set("ada room:read drawing", true)
	g := newGuard(s.path)
	defer g.close()
	ada := asking{credentials{Authorization: []string{"ada"}}, readRoom, "drawing"}
	other := ada
	other.project = "other"
	for range 20 {
		if _, err := g.ask(t.Context(), ada); err != nil {
			t.Fatal(err)
		}
		if _, err := g.ask(t.Context(), other); !fault.Is(err, fault.Forbidden) {
			t.Fatalf("another project: %v", err)
		}
		if _, err := g.ask(t.Context(), asking{action: readRoom, project: "drawing"}); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("nobody: %v", err)
		}
	}
	// Learning the first version makes the answers of before it old, once.
	if n := s.count(); n > 6 {
		t.Errorf("the agent was asked %d times", n)
	}
	s.set("ada room:read drawing", false)
	s.change()
	eventually(t, "what was taken from ada is known", func() bool {
		_, err := g.ask(t.Context(), ada)
		return fault.Is(err, fault.Forbidden)
	})
}

func TestWithoutAnAgentNobodyNewIsLetIn(t *testing.T) {
	s := newScribe(t)
	s.goodFor = 0
	s.set("ada room:read drawing", true)
	s.set("bob room:read drawing", true)
	g := newGuard(s.path)
	defer g.close()
	ada := asking{credentials{Authorization: []string{"ada"}}, readRoom, "drawing"}
	bob := asking{credentials{Authorization: []string{"bob"}}, readRoom, "drawing"}
	if _, err := g.ask(t.Context(), ada); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if _, err := g.ask(t.Context(), ada); err != nil {
		t.Errorf("who was there is cut off: %v", err)
	}
	if _, err := g.ask(t.Context(), bob); fault.CodeOf(err) != fault.Internal {
		t.Errorf("somebody new: %v", err)
	}
	g.mu.Lock()
	for key, a := range g.answers {
		a.at = a.at.Add(-outage)
		g.answers[key] = a
	}
	g.mu.Unlock()
	if _, err := g.ask(t.Context(), ada); err == nil {
		t.Error("an answer counts for ever")
	}
	s.start()
	if _, err := g.ask(t.Context(), bob); err != nil {
		t.Errorf("with the next agent: %v", err)
	}
	if _, err := newGuard("").ask(t.Context(), ada); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a gateway without agent: %v", err)
	}
}

func TestEveryRowSaysWhoMayUseIt(t *testing.T) {
	serve := func(http.ResponseWriter, *http.Request) {}
	for what, row := range map[string]route{
		"no access":        {http.MethodGet, "/a", 0, "", serve},
		"no action":        {http.MethodGet, "/a", member, "", serve},
		"a useless action": {http.MethodGet, "/a", public, readRoom, serve},
	} {
		if checkTable([]route{row}) == nil {
			t.Errorf("a row with %s is served", what)
		}
	}
	g := &Gateway{opts: Options{Logger: hclog.NewNullLogger()}, log: hclog.NewNullLogger(), guard: newGuard("")}
	g.page = &page{}
	g.table = g.routes()
	if err := checkTable(g.table); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{
		"/project/drawing": "drawing", "/project/": "", "/project/a/b": "", "/project": "", "/projects/a": "", "/echo": "",
	} {
		if _, project := g.find(path); project != want {
			t.Errorf("%s names the project %q", path, project)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
