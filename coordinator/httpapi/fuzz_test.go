package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// FuzzRequest sends any body with any path element and query to any route: whatever it is, the answer is
// a success or a problem with a documented code of that route, and never internal.
func FuzzRequest(f *testing.F) {
	k := newKit(f, func(o *Options) { o.Limits = Limits{Token: Rate{1e9, 1e9}, Anonymous: Rate{1e9, 1e9}} })
	k.withGateways(3)
	org := string(k.organization())
	for i, rt := range routes() {
		f.Add(uint8(i), org, "", `{"organization_id":"`+org+`"}`)
		if strings.HasPrefix(rt.path, "/v1/pools") {
			f.Add(uint8(i), "default", "limit=3", `{"max":7,"limits":{"tasks":1}}`)
		}
	}
	f.Add(uint8(0), "..", "wait=1ms&index=9", `{"wait":"1s","ttl":"0s","metadata":{"a":"b"}}`)
	f.Add(uint8(1), "%2e", "", `{"organization_ids":["`+org+`"]}`)
	f.Add(uint8(8), org, "", `{"name":"a","members":[{"user_id":"u","role":"owner"}],"projects":[{"project_id":"p"}]}`)
	f.Add(uint8(31), "x", "topic=a,b&cursor=1.1&limit=1", "")
	f.Add(uint8(33), "x", "", `{"role":"reader","ttl":"1h"}`)
	f.Add(uint8(39), "x", "host=h1&instance=i", `{"host_id":"h1","instance":"i","gateways":[{"gateway_id":"gw-abcdefghij","incarnation":1,"phase":"ready"}]}`)
	table := routes()
	host := k.trust.identity(pki.RoleAgent, string(k.host))
	f.Fuzz(func(t *testing.T, n uint8, element, query, body string) {
		k.t = t // the scripted allocations report to it
		rt := table[int(n)%len(table)]
		if rt.name == "agent-stream" {
			return // held until its client goes
		}
		r := httptest.NewRequest(rt.method, "/", strings.NewReader(body))
		path := rt.path
		for _, p := range []string{"{id}", "{name}", "{user_id}", "{project_id}"} {
			path = strings.ReplaceAll(path, p, url.PathEscape(element))
		}
		r.URL.RawPath, r.URL.RawQuery = path, noWait(query)
		var err error
		if r.URL.Path, err = url.PathUnescape(path); err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		role := api.RoleAdmin
		if rt.access == forHostsAgent {
			ctx := context.WithValue(r.Context(), forwardedKey{}, true)
			r = r.WithContext(context.WithValue(ctx, identityKey{}, identity{host, k.now(), k.now().Add(time.Hour)}))
		}
		r.Header.Set("Authorization", "Bearer "+k.tokens[role])
		w := httptest.NewRecorder()
		k.server.ServeHTTP(w, r)
		if w.Code/100 == 2 {
			return
		}
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Detail == "" {
			t.Fatalf("%s %s: %d %q is no problem: %v", rt.method, path, w.Code, w.Body, err)
		}
		if p.Code == string(fault.Internal) || w.Code == http.StatusMethodNotAllowed {
			t.Fatalf("%s %s with %q: %s", rt.method, path, body, w.Body)
		}
		documented := p.Code == string(fault.NotFound) // an empty element is another path
		for _, c := range rt.allCodes() {
			documented = documented || string(c) == p.Code
		}
		if !documented {
			t.Fatalf("%s %s answers %s, which is not documented for it", rt.method, path, p.Code)
		}
	})
}

// noWait keeps a fuzzed read from being held for minutes.
func noWait(query string) string {
	if strings.Contains(query, "wai") || strings.Contains(query, "%") || strings.Contains(query, "inde") {
		return ""
	}
	return query
}
