package tenantapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/permission"
)

func TestARowThatDoesNotSayWhoMayCallIsRefused(t *testing.T) {
	read := permission.MustParse("room:read")
	serve := func(*Call) error { return nil }
	for what, row := range map[string]Route{
		"no caller":         {Method: http.MethodGet, Path: "/a", Serve: serve},
		"an unknown caller": {Method: http.MethodGet, Path: "/a", Caller: "everybody", Serve: serve},
		"no action":         {Method: http.MethodGet, Path: "/a", Caller: Member, Serve: serve},
		"a useless action":  {Method: http.MethodGet, Path: "/a", Caller: Anyone, Action: read, Serve: serve},
		"no handler":        {Method: http.MethodGet, Path: "/a", Caller: Anyone},
		"another project":   {Method: http.MethodGet, Path: "/a/{b}", Caller: Member, Action: read, Project: "c", Serve: serve},
	} {
		if _, err := newTable([]Route{row}); err == nil {
			t.Errorf("a row with %s is served", what)
		}
	}
	row := Route{Method: http.MethodGet, Path: "/a", Caller: Anyone, Serve: serve}
	if _, err := newTable([]Route{row, row}); err == nil {
		t.Error("one row twice")
	}
}

func TestPathsMeanOneRow(t *testing.T) {
	serve := func(*Call) error { return nil }
	rows := []Route{
		{Method: http.MethodGet, Path: "/roles", Caller: Anyone, Serve: serve},
		{Method: http.MethodPut, Path: "/roles/{role}", Caller: Anyone, Serve: serve},
		{Method: http.MethodDelete, Path: "/roles/{role}", Caller: Anyone, Serve: serve},
	}
	table, err := newTable(rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ method, path, found, allowed string }{
		{"GET", "/roles", "/roles", ""},
		{"PUT", "/roles/a", "/roles/{role}", ""},
		{"DELETE", "/roles/a", "/roles/{role}", ""},
		{"POST", "/roles", "", "GET"},
		{"GET", "/roles/a", "", "PUT DELETE"},
		{"PUT", "/roles/", "", ""},
		{"PUT", "/roles/a/b", "", ""},
		{"GET", "/roles/", "", ""},
		{"GET", "//roles", "", ""},
		{"GET", "/", "", ""},
	} {
		row, params, allowed := table.find(c.method, c.path)
		got := ""
		if row != nil {
			got = row.Path
		}
		if got != c.found || strings.Join(allowed, " ") != c.allowed {
			t.Errorf("%s %s: row %q, allowed %v", c.method, c.path, got, allowed)
		}
		if c.found == "/roles/{role}" && params["role"] != "a" {
			t.Errorf("%s %s: %v", c.method, c.path, params)
		}
	}
}

func TestOnlyPathsOnThisNameAreComeBackTo(t *testing.T) {
	for _, good := range []string{"/", "/a/b?c=d", "/oauth/authorize?x=https%3A%2F%2Fevil.example"} {
		if !localPath(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"", "https://evil.example", "//evil.example", `/\evil.example`, `\\evil.example`, "/a\tb", "evil", "/a\nb", "javascript:alert(1)"} {
		if localPath(bad) {
			t.Errorf("%q is come back to", bad)
		}
	}
}
