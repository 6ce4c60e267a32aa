package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzControl: whatever comes to the private routes is refused whole, or it is an organization that could be served;
// and whatever comes through nginx does not reach them.
func FuzzControl(f *testing.F) {
	f.Add("/control/activate", `{"organization_id":"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11","allocation_id":"al-aaaaaaaaaaaaaaaa","epoch":7,"hostname":"org-6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.example.test"}`)
	f.Add("/control/activate", `{"organization_id":"x","members":[{"user_id":"../x"}],"sections":{"oauth":""}} {}`)
	f.Add("/control/deactivate", `{"epoch":18446744073709551616,"drain":"-1s"}`)
	f.Add("/project/%2e%2e", ``)
	f.Fuzz(func(t *testing.T, path, body string) {
		g := &Gateway{opts: Options{Gateway: "gw-aaaaaaaaaa", MaxBody: 1 << 16, Logger: hclog.NewNullLogger()}, log: hclog.NewNullLogger(), guard: newGuard(""), sockets: newSockets()}
		g.page = &page{}
		g.table = g.routes()
		ask := func(header ...string) int {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			r.URL.Path = path
			for _, epoch := range header {
				r.Header.Add(api.HeaderEpoch, epoch)
			}
			w := httptest.NewRecorder()
			g.serve(w, r)
			return w.Code
		}
		if status := ask("7"); status < 400 || g.tenant.holding() != nil {
			t.Fatalf("through nginx: %d", status)
		}
		if status := ask(); status == http.StatusInternalServerError {
			t.Fatalf("%d", status)
		}
		if held := g.tenant.holding(); held != nil {
			_, err := id.ParseOrganization(string(held.Organization))
			if err != nil || held.Epoch == 0 || !strings.HasPrefix(held.Hostname, "org-"+string(held.Organization)+".") {
				t.Fatalf("%+v was taken", held)
			}
		}
	})
}

// FuzzAnswered: whatever the agent answers, it is an answer that reads the same when it is written again, or a refusal
// with a code of ours, or no answer: then nobody new is let in.
func FuzzAnswered(f *testing.F) {
	f.Add(200, `{"allowed":true,"known":true,"reason":"","user_id":"ada","username":"Ada","version":7,"good_for":"30s"}`)
	f.Add(200, `{"allowed":true,"version":-1}`)
	f.Add(200, `{"allowed":true`)
	f.Add(200, `{"allowed":true,"good_for":"x"}`)
	f.Add(403, `{"code":"forbidden","detail":"no"}`)
	f.Add(500, `{"code":"made_up","detail":"x"}`)
	f.Add(404, "404 page not found")
	f.Add(302, "")
	f.Add(201, `{"allowed":true}`)
	f.Fuzz(func(t *testing.T, status int, text string) {
		var c api.Checked
		err := answered(status, []byte(text), &c)
		if err == nil {
			form, err := json.Marshal(c)
			var back api.Checked
			if err == nil {
				err = answered(http.StatusOK, form, &back)
			}
			if status != http.StatusOK || err != nil || back != c {
				t.Fatalf("%d %q is taken for %+v and read as %+v, %v", status, text, c, back, err)
			}
			return
		}
		var refusal *fault.Error
		if errors.As(err, &refusal) {
			if _, known := fault.Codes()[refusal.Code]; !known || status == http.StatusOK {
				t.Fatalf("%d %q is refused with %v", status, text, err)
			}
		} else if fault.CodeOf(err) != fault.Internal || len(err.Error()) > 500 {
			t.Fatalf("%d %q: %v", status, text, err)
		}
	})
}

// FuzzListen: whatever a gateway is told to listen on is a descriptor that was passed, a path that the kernel takes, or
// refused with what it should be.
func FuzzListen(f *testing.F) {
	for _, s := range []string{"/run/gw.sock", "fd:3", "fd:2", "fd:0", "fd:-1", "fd:+3", "fd:65536", "fd:4294967299", "fd:", "fd:3x", "fd: 3", "gw.sock", "", "/" + strings.Repeat("x", maxSocketPath), "@abstract", strings.Repeat("x", 1000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, where string) {
		fd, err := parseListen(where)
		switch number, passed := strings.CutPrefix(where, "fd:"); {
		case err != nil:
			if len(err.Error()) > 1000 || !strings.HasPrefix(err.Error(), "cannot listen on ") || !strings.Contains(err.Error(), "want ") && !strings.Contains(err.Error(), "use ") {
				t.Fatalf("refused with %v", err)
			}
		case passed && (fd < 3 || fd > 65535 || strconv.Itoa(fd) != strings.TrimLeft(number, "0")), !passed && (fd != 0 || !filepath.IsAbs(where) || len(where) > 107):
			t.Fatalf("%q is descriptor %d", where, fd)
		}
	})
}
