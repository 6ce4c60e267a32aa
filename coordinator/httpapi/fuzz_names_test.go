package httpapi

import (
	"context"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// FuzzCursor: a place in the feed is read as what is printed for it, lists go on after any cursor that is an id, and refuse the others, and a filter or a
// duration is within its bounds or refused by its name.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"17.3", "0.0", "18446744073709551615.2147483647", "18446744073709551616.0", "1.2147483648", "1.9223372036854775808", "-1.0", "1.-1", "+1.+1", "01.02", "1.2.3", ".", "", "gw-aaaaaaaaaa", "\xff"} {
		f.Add(s, "agent,host", "30s")
	}
	f.Add("1.1", ",", "-1s")
	f.Add("1.1", "host\n", "2562047h47m16.854775807s")
	f.Add("1.1", strings.Repeat("host,", 1000), "1e9h")
	f.Fuzz(func(t *testing.T, cursor, filter, wait string) {
		at, err := parseEventID(cursor)
		switch {
		case err == nil:
			printed := event(&state.Event{Index: at.Index, Seq: at.Seq}).ID
			if again, err := parseEventID(printed); err != nil || again != at || at.Seq < 0 {
				t.Fatalf("%q is read as %+v, printed %q and read as %+v, %v", cursor, at, printed, again, err)
			}
		case len(err.Error()) > 500 || !strings.Contains(err.Error(), "as the id of an event"):
			t.Fatalf("refused with %v", err)
		}

		ids := []string{"a", "b", "c", "d"}
		var unread checks
		read := paging(&unread, Paging{Limit: 2, Cursor: cursor}, id.ParseHost)
		if _, err := id.ParseHost(cursor); (err == nil || cursor == "") != (unread.err() == nil) {
			t.Fatalf("the cursor %q: %v", cursor, unread)
		}
		list := func(after id.Host) iter.Seq[string] {
			first, _ := slices.BinarySearch(ids, string(after)+"\x00")
			return slices.Values(ids[first:])
		}
		got := page(read, list, func(s string) id.Host { return id.Host(s) }, every, func(s string) string { return s })
		for i, item := range got.Items {
			if item <= string(read.after) || i > 0 && item <= got.Items[i-1] || len(got.Items) > 2 {
				t.Fatalf("after %q come %q", cursor, got.Items)
			}
		}
		if got.Cursor != "" && got.Cursor != got.Items[len(got.Items)-1] {
			t.Fatalf("after %q the cursor is %q of %q", cursor, got.Cursor, got.Items)
		}

		var c checks
		keep := topics(&c, filter)
		if c.err() == nil && filter != "" {
			for _, topic := range strings.Split(filter, ",") {
				if !keep(topic) {
					t.Fatalf("%q leaves out %q", filter, topic)
				}
			}
		}
		if v := duration(&c, "query.wait", wait, waitLimit); v < 0 || v > waitLimit {
			t.Fatalf("%q is %s", wait, v)
		}
		for _, wrong := range c {
			if wrong.Location == "" || len(wrong.Message) > 1000 {
				t.Fatalf("%+v", wrong)
			}
		}
	})
}

// FuzzForwarded: whatever a coordinator says of its caller is read as what it printed, or the request is refused.
func FuzzForwarded(f *testing.F) {
	who, err := pki.NewIdentity("0c6d8a52-1f0e-4b53-9a55-0e8fb5a9c001", pki.RoleAgent, "h1")
	if err != nil {
		f.Fatal(err)
	}
	good := identity{who, time.Unix(1_800_000_000, 0), time.Unix(1_900_000_000, 0)}.header()
	f.Add(good, "192.0.2.1", "/v1/hosts?limit=1")
	f.Add(good+" ", "fe80::1%\n", "/v1/%zz")
	f.Add(strings.Replace(good, "18", "+18", 1), "::ffff:192.0.2.1", "?wait=1&wait=2;x")
	f.Add("x 9223372036854775807 -9223372036854775808", "", "//")
	f.Fuzz(func(t *testing.T, header, caller, target string) {
		if i, err := parseIdentity(header); err == nil {
			again, err := parseIdentity(i.header())
			if err != nil || again.who != i.who || !again.from.Equal(i.from) || !again.until.Equal(i.until) {
				t.Fatalf("%q is read as %+v and that as %+v, %v", header, i, again, err)
			}
		} else if len(err.Error()) > 1000 {
			t.Fatalf("refused with %d bytes", len(err.Error()))
		}
		if a, err := netip.ParseAddr(caller); err == nil {
			r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/", nil)
			r.RemoteAddr = netip.AddrPortFrom(a, 0).String()
			address := addressOf(r)
			if strings.ContainsAny(address, "%\r\n ") || network(network(address)) != network(address) {
				t.Fatalf("the caller %q is %q of %q", caller, address, network(address))
			}
		}
		if u, err := url.Parse(target); err == nil {
			key := readKey(u)
			if again, err := url.Parse(key); err == nil && again.Query().Has("wait") {
				t.Fatalf("%q is remembered as %q", target, key)
			}
		}
	})
}
