package tenantapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzRequests: no request of somebody who may everything, with whatever path, query and body, fails in here; and the
// same of somebody who may nothing is let in nowhere but where anyone is.
func FuzzRequests(f *testing.F) {
	k := newKit(f)
	session := k.session(ours, "ada")
	for _, row := range k.server.Routes() {
		f.Add(row.Method, parameters.Replace(row.Path), "", bodies[row.Method+" "+row.Path])
	}
	f.Add("GET", "/oauth/callback", "state=x&code=y&iss=%zz", "")
	f.Add("GET", "/oauth/login", "to=//evil.test", "")
	f.Add("POST", "/containers/aaaaaaaaaaaaaaaa/announce", "", `{"address":"::1%x","services":[{"name":"a","port":70000}]}`)
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		for _, as := range []func(*http.Request){session, func(*http.Request) {}} {
			r := httptest.NewRequest(http.MethodGet, "/", strings.NewReader(body))
			r.Method, r.URL.Path, r.URL.RawQuery, r.Host = method, path, query, id.Hostname(ours, domain)
			r.Header.Set("X-Demiurge-Organization", string(ours))
			r.Header.Set(api.HeaderEpoch, epoch.String())
			r.Header.Set("X-Forwarded-Proto", "https")
			r.Header.Set("X-Real-IP", "192.0.2.7")
			r.Header.Set("Content-Type", "application/json")
			as(r)
			w := httptest.NewRecorder()
			k.server.ServeHTTP(w, r)
			if w.Code == http.StatusInternalServerError || w.Code < 200 {
				t.Fatalf("%s %s?%s: %d %s", method, path, query, w.Code, w.Body)
			}
			if to := w.Header().Get("Location"); strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\r\n") {
				t.Fatalf("somebody is sent to %q", to)
			}
			row, _, _ := k.server.table.find(method, path)
			if r.Header.Get("Cookie") == "" && row != nil && row.Caller == Member && w.Code < 400 {
				t.Fatalf("%s %s is answered to nobody: %d %s", method, path, w.Code, w.Body)
			}
		}
	})
}

// FuzzControl: nothing that a gateway asks makes its door fail, and nobody whom it names may anything without a
// credential that is good.
func FuzzControl(f *testing.F) {
	k := newKit(f)
	f.Add([]byte(`{"authorization":["Bearer x"],"action":"room:read","project_id":"drawing"}`))
	f.Add([]byte(`{"cookie":["__Host-demiurge-session=x"],"action":"*:*"}`))
	f.Add([]byte(`{"user_id":"ada"}`))
	k.server.doors.mu.Lock()
	k.server.doors.at["fuzz"] = &door{Door: Door{Gateway: "gw-aaaaaaaaaa", Organization: ours, Epoch: epoch}}
	k.server.doors.mu.Unlock()
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/v1/check", bytes.NewReader(body))
		r = r.WithContext(context.WithValue(r.Context(), doorKey{}, "fuzz"))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		k.server.doors.http.Handler.ServeHTTP(w, r)
		var out api.Checked
		switch {
		case w.Code == http.StatusOK && json.Unmarshal(w.Body.Bytes(), &out) == nil && !out.Allowed && !out.Known:
		case w.Code == http.StatusBadRequest || w.Code == http.StatusRequestEntityTooLarge:
		default:
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

// FuzzLocalPath: what is accepted as a path on this name is one for every browser.
func FuzzLocalPath(f *testing.F) {
	for _, s := range []string{"/", "/a?b#c", "//evil.test", `/\evil.test`, "/\t/evil.test", "https://evil.test", "/%2f/x", "/\u00a0", "/ ", "/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, to string) {
		if !localPath(to) {
			return
		}
		// What browsers do before they look: they trim spaces and control characters of ASCII (no others), take out tabs
		// and line ends, and read \ as /.
		read := strings.NewReplacer("\t", "", "\r", "", "\n", "", `\`, "/").Replace(strings.TrimFunc(to, func(r rune) bool { return r <= ' ' }))
		if read != to || strings.HasPrefix(read, "//") || !strings.HasPrefix(read, "/") {
			t.Fatalf("%q is read as %q", to, read)
		}
	})
}

// FuzzSealed: what a browser brings back opens only as it was sealed, for what it was sealed, and in its time.
func FuzzSealed(f *testing.F) {
	now := time.Now()
	s, err := newSealer(func() time.Time { return now })
	if err != nil {
		f.Fatal(err)
	}
	const value = "of ours"
	sealed, err := s.seal("login", time.Minute, value)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("login", sealed, int64(59))
	f.Add("login", sealed, int64(60))
	f.Add("consent", sealed, int64(0))
	f.Add("login", sealed+"A", int64(0))
	f.Add("login", sealed[:len(sealed)-1], int64(0))
	f.Add("login", strings.ToLower(sealed), int64(0))
	f.Add("login", "", int64(0))
	f.Fuzz(func(t *testing.T, purpose, text string, later int64) {
		before := now
		defer func() { now = before }()
		now = now.Add(time.Duration(later%3600) * time.Second)
		var got string
		err := s.open(purpose, text, &got)
		bytes, wrong := base64.RawURLEncoding.DecodeString(text)
		if mine := purpose == "login" && wrong == nil && slices.Equal(bytes, raw) && later%3600 < 60; (err == nil) != mine || mine && got != value || !mine && got != "" {
			t.Fatalf("for %q, %d s later, %q opens to %q, %v", purpose, later%3600, text, got, err)
		}
	})
}
