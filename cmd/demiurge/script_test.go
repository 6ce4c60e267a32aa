package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"demiurge": main})
}

// TestScripts runs every story of testdata/script against a coordinator of canned answers. Beside the
// commands of testscript there are:
//
//	answer METHOD PATH STATUS FILE   answer that call with the file ("-": nothing)
//	asked FILE                       the calls so far are those of the file, one a line; forgets them
//	exits CODE COMMAND…              the command ends with this code
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"answer": answer,
			"asked":  asked,
			"exits":  exits,
		},
	})
}

// canned is a coordinator that answers what it was told and remembers what it was asked.
type canned struct {
	mu      sync.Mutex
	answers map[string]reply // by "METHOD path"
	calls   []string
}

type reply struct {
	status int
	body   string
}

func setup(env *testscript.Env) error {
	c := &canned{answers: map[string]reply{}}
	server := httptest.NewServer(c)
	env.Defer(server.Close)
	env.Values["coordinator"] = c
	env.Setenv("DEMIURGE_ADDR", server.URL)
	env.Setenv("DEMIURGE_TOKEN", "secret")
	env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for every command otherwise
	env.Setenv("ORG", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11")
	return nil
}

func (c *canned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" { // a look whether somebody is there, before the call
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	call := strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body))
	if r.Header.Get("Authorization") != "Bearer secret" {
		call += " without the token"
	}
	c.calls = append(c.calls, call)
	a, ok := c.answers[r.Method+" "+r.URL.RequestURI()]
	c.mu.Unlock()
	if !ok {
		a = reply{404, `{"status":404,"title":"Not Found","code":"not_found","detail":"cannot find ` + r.URL.Path + `"}`}
	}
	if a.status >= 400 {
		w.Header().Set("Content-Type", "application/problem+json")
		w.Header().Set("Retry-After", "2")
	}
	w.WriteHeader(a.status)
	if a.body != "" {
		_, _ = io.WriteString(w, a.body) // a client that went away is the script's business
	}
}

func coordinatorOf(ts *testscript.TestScript) *canned { return ts.Value("coordinator").(*canned) }

func answer(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: answer METHOD PATH STATUS FILE")
	}
	status, err := strconv.Atoi(args[2])
	ts.Check(err)
	a := reply{status: status}
	if args[3] != "-" {
		a.body = ts.ReadFile(args[3])
	}
	c := coordinatorOf(ts)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[args[0]+" "+args[1]] = a
}

func asked(ts *testscript.TestScript, _ bool, args []string) {
	c := coordinatorOf(ts)
	c.mu.Lock()
	got := strings.Join(c.calls, "\n")
	c.calls = nil
	c.mu.Unlock()
	want := strings.TrimSpace(os.Expand(ts.ReadFile(args[0]), ts.Getenv))
	if got != want {
		ts.Fatalf("the coordinator was asked\n%s\nwant\n%s", got, want)
	}
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != args[0] {
		ts.Fatalf("%s exits with %s, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}
